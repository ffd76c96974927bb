"""Take the picture of the flights' graph for the docs: `make look-airflow`. Chromium has to be installed.

Airflow runs as in the end-to-end test, with the DAG files of the example; the page is Airflow's own.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.adapters.airflow.conftest import environment
from tests.adapters.airflow.stack import Stack
from tests.architecture.house import ROOT
from tests.browser import Browser

DAG = "flights_full"
SIZE = (1800, 900)


def main(target: Path) -> None:
    """Save the picture."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        place = Path(name)
        stack = Stack(place / "home", environment())
        shutil.copy(ROOT / "dags" / "airflow" / f"{DAG}.py", stack.dags)
        try:
            stack.start()
            stack.knows(DAG)
            browser = Browser(place / "browser", SIZE)
            try:
                browser.look(f"{stack.url}/dags/{DAG}", 15)
                # The view of a graph, and all the room for it.
                browser.run("[...document.querySelectorAll('button')].find(item => /graph/i.test(item.ariaLabel ?? item.title)).click()")
                browser.run("document.querySelector('[data-panel-resize-handle-id]').focus()")
                for kind in ("keyDown", "keyUp"):
                    browser.call("Input.dispatchKeyEvent", type=kind, key="End", code="End", windowsVirtualKeyCode=35)
                time.sleep(10)
                target.write_bytes(browser.picture())
            finally:
                browser.close()
        finally:
            stack.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
