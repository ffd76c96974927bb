"""A browser without a window, for pictures of other programs' pages."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--remote-debugging-port=0", "--remote-allow-origins=*"),
)


class Browser:
    """Headless Chromium with one page, driven by its debugging protocol.

    Args:
        folder: Where it keeps its profile.
        size: Width and height of the page in pixels.
    """

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            raise SystemExit("Chromium is needed to take the picture: install the package chromium.")
        words = [program, *_FLAGS, f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}"]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        told = folder / "DevToolsActivePort"
        while not told.exists() or not told.read_text():
            time.sleep(0.2)
        port = told.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            (page, *_) = [item for item in json.load(answer) if item["type"] == "page"]
        self._socket = connect(page["webSocketDebuggerUrl"], max_size=None)
        self._number = 0

    def call(self, method: str, **parameters: object) -> dict:
        """Call a method of the protocol and return what it answers."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == self._number:
                return answer["result"]

    def resize(self, width: int, height: int) -> None:
        """Give the page another size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

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

    def text(self) -> str:
        """Return the text that the page shows."""
        return self.call("Runtime.evaluate", expression="document.body?.innerText ?? ''")["result"]["value"]

    def read(self, url: str, *words: str, patience_s: float = 90.0) -> None:
        """Go to a page and wait until it shows all of these words.

        Raises:
            RuntimeError: It does not.
        """
        self.call("Page.navigate", url=url)
        end = time.monotonic() + patience_s
        while missing := [word for word in words if word not in self.text()]:
            if time.monotonic() > end:
                raise RuntimeError(f"{url} does not show {', '.join(missing)}, but:\n{self.text()}")
            time.sleep(0.5)

    def picture(self) -> bytes:
        """Return what is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def close(self) -> None:
        """End the browser."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)
