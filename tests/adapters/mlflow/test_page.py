"""All of docs/mlflow.md runs, and gives what it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.adapters.mlflow.conftest import free_port, stop, wait_for

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "mlflow.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)

#: Between what two blocks of one session print.
MARK = "\0"


def session():
    """Return the blocks that belong to no file, and what each prints."""
    follows = zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True)
    own = [(text, after) for (language, text), after in follows if language == "python" and not re.match(r"# \w+\.py\n", text)]
    return [(text, after[1] if after[0] == "text" else "") for text, after in own]


@pytest.mark.slow
def test_the_page_runs_from_the_first_line_to_the_last(tmp_path):
    files = {match[1]: text for language, text in BLOCKS if language == "python" and (match := re.match(r"# (\w+\.py)\n", text))}
    assert list(files) == ["slopes.py"]
    (tmp_path / "slopes.py").write_text(files["slopes.py"])
    (tmp_path / "session.py").write_text(f"print({MARK!r}, end='')\n".join(text for text, _ in session()))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}"}
    done = subprocess.run([sys.executable, "session.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(MARK) == [shown for _, shown in session()]

    shown = next(text for language, text in BLOCKS if language == "console" and "models serve" in text).splitlines()
    port = free_port()
    words = [word.replace("8000", str(port)) for word in shown[0].removeprefix("$ ").split()]
    (tmp_path / "slopes.py").unlink()
    served = {**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *words], cwd=tmp_path, env=served, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(port, process)
            body = re.search(r"-d '(.*)'$", shown[1])[1]
            request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body.encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer) == json.loads(shown[2])
        finally:
            stop(process)
