"""docs/airflow-deployment.md, from its first command to its last: with a wheel of this checkout, a PostgreSQL of the tests, and no network."""

from __future__ import annotations

import os
import re
import shlex
import site
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.adapters.airflow.conftest import ROOT
from tests.adapters.airflow.test_hand_written import KUBE_CONFIG

pytestmark = [pytest.mark.usefixtures("modules"), pytest.mark.timeout(900)]

PAGE = (ROOT / "docs" / "airflow-deployment.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
#: Files by name, as the first line of their block says.
FILES = {match[1]: text for _, text in BLOCKS if (match := re.match(r"# (\S+)\n", text))}
COMMANDS = [line[2:] for language, text in BLOCKS if language == "console" for line in text.splitlines()]


def wheel(folder: Path) -> None:
    """Pack this checkout as a wheel, as it would be published."""
    found = distribution("pipedag-core")
    name = f"pipedag_core-{found.version}"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as packed:
        for base in (ROOT, ROOT / "adapters"):
            for package in sorted(base.glob("pipedag_*")):
                for file in sorted(package.rglob("*.py")):
                    packed.write(file, file.relative_to(base).as_posix())
        packed.writestr(f"{name}.dist-info/METADATA", found.read_text("METADATA") or "")
        packed.writestr(f"{name}.dist-info/entry_points.txt", found.read_text("entry_points.txt") or "")
        packed.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{name}.dist-info/RECORD", "")


class Desk:
    """Where somebody follows the page: `/opt/venvs` and the database are those of the test, all else is as it stands there."""

    def __init__(self, folder: Path, url: str, home: Path) -> None:
        self.project = folder / "orders"
        self.venvs = folder / "venvs"
        self.project.mkdir()
        self._names = {
            "/opt/venvs": str(self.venvs),
            "postgresql://orders:password@db:5432/orders": url,
            "orders_{instance_id}_": "{$SCHEMA_PREFIX}{instance_id}_",
        }
        (folder / "wheels").mkdir()
        wheel(folder / "wheels")
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "STORE_URL")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.project / "dags"),
            # What is not published yet comes from the wheel, and what it needs is behind the new environments already.
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_FIND_LINKS": str(folder / "wheels"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def written(self, name: str, *, below: str = "") -> Path:
        """Write a file of the page."""
        text = FILES[name]
        for shown, real in self._names.items():
            text = text.replace(shown, real)
        (self.project / below).mkdir(exist_ok=True)
        file = self.project / below / name
        file.write_text(text, "utf-8")
        return file

    def run(self, command: str, code: int = 0) -> str:
        """Carry out a command of the page, in the project's folder; return what it said."""
        for shown, real in self._names.items():
            command = command.replace(shown, real)
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.project, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        made = re.fullmatch(r"(\S+)/bin/pip install -r requirements.txt", command)
        if made:
            # What the package needs is not on the disk as wheels; it is found behind the new environment.
            own = next(Path(made[1]).glob("lib/python*/site-packages"))
            (own / "behind.pth").write_text(f"import site; site.addsitedir({site.getsitepackages()[0]!r})\n")
        return done.stdout + done.stderr


@pytest.fixture
def desk(tmp_path, airflow_home, postgres_url, schema_prefix, monkeypatch):
    monkeypatch.setenv("SCHEMA_PREFIX", schema_prefix)
    return Desk(tmp_path, postgres_url, airflow_home)


def test_the_page_is_followed_from_the_first_command_to_the_last(desk, postgres_url, schema_prefix, load_dag, monkeypatch, tmp_path):
    import psycopg

    assert set(FILES) == {"orders.py", "pipedag.yaml", "requirements.txt", ".airflowignore", "Dockerfile", "orders_pods.py"}
    commands = iter(COMMANDS)
    for name in ("orders.py", "pipedag.yaml", "requirements.txt"):
        desk.written(name)

    def totals():
        with psycopg.connect(postgres_url) as connection:
            return connection.execute(f'SELECT customer, amount FROM "{schema_prefix}full_marts".totals ORDER BY 1').fetchall()

    def follow(code=0):
        return desk.run(next(commands), code)

    # Requirements.
    assert "already satisfied: pipedag-core" in follow()
    follow()
    assert "Successfully installed pipedag-core" in follow()
    assert str(desk.venvs) in desk.run("/opt/venvs/orders/bin/python -c 'import pipedag_core; print(pipedag_core.__file__)'")

    # Secrets, the DAG file, and a run in one process.
    assert "Successfully added" in follow()
    assert "orders_full.py written" in follow()
    generated = desk.project / "dags" / "orders_full.py"
    assert postgres_url not in generated.read_text()
    assert "is up to date" in follow()
    desk.written(".airflowignore")
    follow()
    assert totals() == [("a", 15.0), ("b", 20.0)]

    # Kubernetes: what the pod would run is run here, with what the pod would have in its environment.
    follow()
    desk.written("orders_pods.py", below="dags")
    (tmp_path / "kube.yaml").write_text(KUBE_CONFIG)
    monkeypatch.setenv("AIRFLOW_CONN_ORDERS_STORE", postgres_url)
    command, variables = _pod(load_dag, desk.project / "dags" / "orders_pods.py", tmp_path / "kube.yaml")
    assert variables["STORE_URL"].startswith("postgres")
    words = shlex.join(command).replace("/airflow/xcom/return.json", str(tmp_path / "return.json"))
    # The image's own pipedag is that of the environment.
    desk.environment |= {"PATH": f"{desk.venvs}/orders/bin{os.pathsep}{desk.environment['PATH']}", "STORE_URL": postgres_url}
    assert '"outcome": "opened"' in desk.run(words)
    run_id = command[command.index("--run-id") + 1]
    # The run ends without its tasks, and gives the stage back.
    assert '"reason": "failed"' in desk.run(f"pipedag step orders:flow finish --instance full --run-id {run_id}", 1)
    desk.environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    del desk.environment["STORE_URL"]
    (desk.project / "dags" / "orders_pods.py").unlink()

    # Upgrades. Code that is wired differently is refused until the file is generated again.
    source = (desk.project / "orders.py").read_text()
    (desk.project / "orders.py").write_text(source.replace("        totals(table)", "        totals(table)\n        totals(table)"))
    check = next(command for command in COMMANDS if command.endswith("--check"))
    assert "says something else" in desk.run(check, 1)
    told = desk.run("airflow dags test orders_full", 1)
    assert "Generate the DAG file again" in told
    (desk.project / "orders.py").write_text(source)

    # Requirements, in a new environment beside the old one; what the old one has made stays valid.
    follow()
    follow()
    assert "orders_full.py written" in follow()
    told = desk.run("airflow dags test orders_full")
    assert re.search(r"task:raw\.orders: cached", told)
    assert "orders-2/bin/python" in told
    assert follow()
    assert follow()
    assert next(commands, None) is None


def _pod(load_dag, file, kube):
    """Return the command and the environment variables of the first pod of a DAG."""
    import pendulum

    (dag,) = load_dag(file).dags.values()
    task = dag.get_task("raw.open_stage")
    task.config_file, task.do_xcom_push = str(kube), True
    assert (task.image, task.namespace) == ("registry.example.org/orders:1", "jobs")

    class Instance:
        dag_id, run_id, task_id, try_number, map_index, max_tries = "orders_pods", "manual", "raw.open_stage", 1, -1, 1

        def get_template_context(self):
            return context

    day = pendulum.datetime(2026, 1, 1)
    run = type("Run", (), {"run_id": "manual", "logical_date": day, "dag_id": "orders_pods"})()
    context = {"ti": Instance(), "params": {}, "dag": dag, "run_id": "manual", "dag_run": run, "logical_date": day, "task": task}
    context["task_instance"] = context["ti"]
    type(task).get_ti_pod_labels = lambda *_, **__: {}
    pod = task.build_pod_request_obj(context)
    base = next(container for container in pod.spec.containers if container.name == "base")
    return [*base.command, *base.args], {item.name: item.value for item in base.env}
