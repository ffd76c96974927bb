"""All of docs/production.md runs, and gives what it shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "production.md").read_text("utf-8")

#: (language, text) of all blocks, in order.
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)

#: Between what two blocks of one session print.
MARK = "\0"


def files() -> dict[str, str]:
    named = ((re.match(r"# (\w+\.py)\n", text), text) for language, text in BLOCKS if language == "python")
    return {match[1]: text for match, text in named if match}


def commands() -> list[tuple[str, list[str]]]:
    """Return the commands, and the lines that are shown below each."""
    found: list[tuple[str, list[str]]] = []
    for line in (line for language, text in BLOCKS if language == "console" for line in text.splitlines()):
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def session() -> list[tuple[str, str]]:
    """Return the blocks that belong to no file, and what each prints."""
    follows = zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True)
    own = [(text, after) for (language, text), after in follows if language == "python" and not re.match(r"# \w+\.py\n", text)]
    return [(text, after[1] if after[0] == "text" else "") for text, after in own]


def python(folder: Path, *words: str) -> str:
    told = subprocess.run((sys.executable, *words), cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert told.returncode == 0, told.stderr
    return told.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's modules, in which a process finds the package under test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, text in files().items():
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def ask(port: str, body: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", body.encode(), timeout=60) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def test_the_page_runs_from_the_first_line_to_the_last(folder):
    assert files().keys() == {"deliveries.py", "serve.py"}
    shell = [(words, shown) for words, shown in commands() if words.startswith("pipedag ")]
    assert [words.split()[1] for words, _ in shell] == ["run", "extract"]
    for words, shown in shell:
        told = python(folder, "-m", "pipedag_core.cli", *words.split()[1:])
        assert [line for line in shown if line not in told.splitlines()] == []

    blocks = session()
    assert len(blocks) == 7
    (folder / "session.py").write_text(f"print({MARK!r}, end='')\n".join(text for text, _ in blocks), "utf-8")
    assert python(folder, "session.py").split(MARK) == [shown for _, shown in blocks]
    assert "<svg" in (folder / "production.html").read_text("utf-8")

    (folder / "places.csv").write_text("place,km\np0,0.0\np3,4.5\n")
    requests = [(re.search(r"-d '(.*)'$", words), shown) for words, shown in commands() if words.startswith("curl ")]
    assert len(requests) == 2
    # It needs nothing but the bundle.
    (folder / "deliveries.py").unlink()
    with subprocess.Popen((sys.executable, "serve.py", "0"), cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split()[-1]
            for body, shown in requests:
                assert body is not None
                assert json.loads(ask(port, body[1])) == json.loads(shown[0])
        finally:
            server.terminate()
