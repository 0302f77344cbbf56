"""A headless Chromium, spoken to in the DevTools protocol over its pipes: no driver and no package is needed.

https://chromedevtools.github.io/devtools-protocol/ ; with ``--remote-debugging-pipe`` messages end in a zero byte, in on
file descriptor 3 and out on 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

__all__ = ["Browser", "find_chromium"]

_PATIENCE_S = 60.0


def find_chromium() -> str | None:
    """Return the path of a Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One browser with one page. A context manager."""

    def __init__(self, program: str, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()
        # The shell puts the pipes on the numbers that Chromium wants, whatever numbers they have here.
        command = (
            f'exec "$0" --headless=new --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage --hide-scrollbars '
            f'--user-data-dir="$1" --remote-debugging-pipe about:blank 3<&{ours[0]} 4>&{theirs[1]}'
        )
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, program, str(profile)],
            pass_fds=(ours[0], theirs[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._out, self._in = ours[1], theirs[0]
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self.console: list[str] = []

    def __enter__(self) -> Browser:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a page and wait until it has loaded; what it logs, and what it asks the network for, is in `console`."""
        self.look(width=width, height=height, dark=dark)
        self.console.clear()
        self._loaded = False
        self._call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + _PATIENCE_S
        while not self._loaded:
            self._receive(deadline)

    def look(self, *, width: int, height: int = 900, dark: bool = False, paper: bool = False) -> None:
        """Set the size of the window, the theme, and whether it is drawn as on paper."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media="print" if paper else "screen", features=[scheme])

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page; a promise is awaited."""
        told = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise AssertionError(told["exceptionDetails"].get("exception", told["exceptionDetails"]))
        return told["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key, such as ``Tab`` (9) or ``Enter`` (13)."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        told = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def print(self) -> bytes:
        """Return the page on A4 as PDF."""
        return base64.b64decode(self._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            reply = self._receive(deadline)
            if reply.get("id") == self._count:
                if "error" in reply:
                    raise AssertionError(f"{method}: {reply['error']}")
                result: dict[str, Any] = reply["result"]
                return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium said nothing for {_PATIENCE_S:.0f} s")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise ConnectionError("Chromium went away")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        method, told = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(json.dumps(told))
        elif method == "Network.requestWillBeSent" and not told["request"]["url"].startswith("file:"):
            self.console.append(told["request"]["url"])
        return message
