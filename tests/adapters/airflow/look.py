"""Take the picture of the flights' graph for the docs: `make look-airflow`. Chromium has to be installed.

Airflow runs as in the end-to-end test, with the DAG files of the example; the page is Airflow's own.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import websocket

from tests.adapters.airflow.conftest import environment
from tests.adapters.airflow.stack import Stack
from tests.architecture.house import ROOT

DAG = "flights_full"
SIZE = (1800, 900)

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--remote-debugging-port=0", "--remote-allow-origins=*"),
)


class Browser:
    """Headless Chromium with one page, driven by its debugging protocol.

    Args:
        folder: Where it keeps its profile.
    """

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            raise SystemExit("Chromium is needed to take the picture: install the package chromium.")
        words = [program, *_FLAGS, f"--user-data-dir={folder}", f"--window-size={SIZE[0]},{SIZE[1]}"]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        told = folder / "DevToolsActivePort"
        while not told.exists() or not told.read_text():
            time.sleep(0.2)
        port = told.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            (page, *_) = [item for item in json.load(answer) if item["type"] == "page"]
        self._socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=60)
        self._number = 0

    def call(self, method: str, **parameters: object) -> dict:
        """Call a method of the protocol and return what it answers."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                return answer["result"]

    def look(self, url: str, wait_s: float) -> None:
        """Go to a page and give it time."""
        self.call("Page.navigate", url=url)
        time.sleep(wait_s)

    def run(self, code: str) -> None:
        """Run JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=code)
        if "exceptionDetails" in answer:
            labels = self.call(
                "Runtime.evaluate", expression="[...document.querySelectorAll('button')].map(i => i.outerHTML.slice(0, 150)).join()"
            )
            raise RuntimeError(f"{code} failed in the page: {answer['exceptionDetails']}; its buttons: {labels['result']['value']}")

    def picture(self) -> bytes:
        """Return what is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def close(self) -> None:
        """End the browser."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)


def main(target: Path) -> None:
    """Save the picture."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        place = Path(name)
        stack = Stack(place / "home", environment())
        shutil.copy(ROOT / "dags" / "airflow" / f"{DAG}.py", stack.dags)
        try:
            stack.start()
            stack.knows(DAG)
            browser = Browser(place / "browser")
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
