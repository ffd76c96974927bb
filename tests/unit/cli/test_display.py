"""What is shown of a run, and the commands that adapters add."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from dataclasses import replace

import pytest
from rich.progress import BarColumn
from typer.testing import CliRunner

from pipedag_core.cli.app import app
from pipedag_core.cli.progress import LiveProgress, PlainProgress, line, summary
from pipedag_core.cli.tables import span
from pipedag_core.cli.tracebacks import trimmed
from pipedag_core.errors import ConfigError, StoreError
from pipedag_core.ports.events import Outcome, RunFinished, RunStarted, StepEnded, StepReport, StepStarted

RAN = StepReport("task:s.t", Outcome.RAN, "query changed", "s", "t", ("t",), 1234, 0.5)
WAITING = StepReport("open:s", Outcome.WAITING, "run r2 writes it", "s")
COMMITTED = StepReport("commit:s", Outcome.COMMITTED, "s g1", "s")
FAILED = StepReport("task:s.u", Outcome.FAILED, "", "s", "u", message="it broke\nbadly")


def test_a_line_has_outcome_name_reason_rows_and_seconds():
    assert re.split(" {2,}", line(RAN)) == ["ran", "s.t", "query changed", "1,234 rows", "0.50 s"]
    assert "it broke" in line(FAILED)
    assert "\n" not in line(FAILED)


def test_a_summary_counts_outcomes():
    assert summary("f", "full", "r1", [RAN, COMMITTED], 61) == (
        "flow f, instance full: succeeded in 1 min 1 s; 1 task (1 ran); 1 stage (1 committed); run r1"
    )
    assert "failed in" in summary("f", "full", "r1", [RAN, FAILED], 1)


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (0.004, "0.00 s"), (59.9, "59.90 s"), (3599.9, "1 h 0 min"), (90, "1 min 30 s")])
def test_durations_are_short(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize("display", [LiveProgress, PlainProgress])
def test_both_displays_show_each_step_once(display, capsys):
    with display() as shown:
        shown.on_event(RunStarted("r1", "f", "full", ("open:s", "task:s.t", "commit:s", "finish")))
        for report in (WAITING, WAITING, RAN, COMMITTED):
            shown.on_event(StepStarted("r1", report.step))
            shown.on_event(StepEnded("r1", report))
        shown.on_event(RunFinished("r1", "succeeded"))
    lines = [text for text in capsys.readouterr().out.splitlines() if text.startswith(("ran ", "waiting ", "committed "))]
    assert [text.split()[0] for text in lines] == ["waiting", "ran", "committed"]
    assert (shown.recorder.run_id, shown.recorder.reports) == ("r1", [RAN, COMMITTED])


def raised(function):
    with pytest.raises((ValueError, OSError)) as caught:
        function()
    return caught.value


def test_a_traceback_keeps_the_users_lines_only(tmp_path):
    code = compile("def user(x):\n    import json\n    return json.loads(x)\n", str(tmp_path / "users_own.py"), "exec")
    names = {}
    exec(code, names)
    error = raised(lambda: names["user"]("{"))
    assert "users_own.py" in trimmed(error)
    assert "json/decoder.py" not in trimmed(error)
    assert "json/decoder.py" in trimmed(error, everything=True)
    assert trimmed(error).endswith(traceback.format_exception_only(error)[-1].rstrip())


def test_causes_are_trimmed_too(tmp_path):
    code = compile(
        "def user(x):\n    try:\n        x()\n    except OSError as e:\n        raise ValueError('outer') from e\n", "users_own.py", "exec"
    )
    names = {}
    exec(code, names)

    def lose():
        raise OSError("inner")

    told = trimmed(raised(lambda: names["user"](lose)))
    assert "inner" in told
    assert "outer" in told


def test_an_error_of_ours_without_a_line_of_the_users_is_its_message():
    error = ConfigError("Wrong. Mend it.")
    error.add_note("in flow f")
    assert trimmed(error) == "ConfigError: Wrong. Mend it.\nin flow f"
    error = StoreError("No space.")
    error.__cause__ = FileNotFoundError("nowhere")
    assert trimmed(error) == "StoreError: No space."
    assert "FileNotFoundError" in trimmed(error, everything=True)


def test_what_the_users_code_raised_before_an_error_of_ours_stays(tmp_path):
    names = {}
    exec(compile("def user():\n    raise OSError('user')\n", str(tmp_path / "users_own.py"), "exec"), names)
    error = StoreError("No rows.")
    error.__cause__ = raised(names["user"])
    told = trimmed(error)
    assert "users_own.py" in told
    assert "OSError: user" in told
    assert told.endswith("No rows.")
    assert "test_display.py" in told


def test_a_syntax_error_names_the_users_line_only(tmp_path):
    with pytest.raises(SyntaxError) as caught:
        importlib.import_module("ast").parse("x = (1", str(tmp_path / "users_own.py"))
    caught.value.__traceback__ = caught.value.__traceback__.tb_next
    told = trimmed(caught.value)
    assert told.lstrip().startswith("File ")
    assert "ast.py" not in told
    assert "users_own.py" in told


def test_a_long_name_keeps_one_space_before_what_follows():
    name = "t" * 40
    assert f"s.{name} query changed" in line(replace(RAN, task=name))


@pytest.mark.parametrize(("width", "bar"), [(79, False), (120, True)])
def test_a_narrow_terminal_shows_no_bar_and_nothing_is_counted_before_the_run_begins(width, bar, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = LiveProgress()
    assert any(isinstance(column, BarColumn) for column in shown._progress.columns) is bar
    assert not shown._progress.tasks[0].visible
    shown.on_event(RunStarted("r1", "f", "full", ("open:s",)))
    assert (shown._progress.tasks[0].visible, shown._progress.tasks[0].total) == (True, 1)


def test_adapters_add_commands_through_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "probe_adapter.py").write_text(
        "import typer\napp = typer.Typer(help='Does adapted things.')\n\n@app.command()\ndef go(word: str = 'adapted'):\n    print(word)\n\n"
        "@app.command()\ndef stop():\n    pass\n"
    )
    info = tmp_path / "probe_adapter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: probe-adapter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[pipedag.commands]\nadapted = probe_adapter:app\nmissing = probe_nowhere:app\nrun = probe_adapter:app\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    runner = CliRunner()
    try:
        assert re.search(r"\badapted +Does adapted things\.", runner.invoke(app, ["--help"]).stdout)
        assert runner.invoke(app, ["adapted", "go", "--word", "hello"]).stdout == "hello\n"
        assert "Run a flow" in runner.invoke(app, ["run", "--help"]).stdout
        assert runner.invoke(app, ["missing"]).exit_code == 2
    finally:
        sys.modules.pop("probe_adapter", None)
