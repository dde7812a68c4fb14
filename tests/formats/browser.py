"""Headless Chromium through the DevTools protocol: what a page does when a person uses it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FILLED = "document.documentElement.dataset.filled"  # of a report page: all its events are shown
START_SECONDS = 60.0
ANSWER_SECONDS = 60.0
FLAGS = """
    --headless=new --no-sandbox --disable-gpu --mute-audio --no-first-run --disable-extensions --disable-sync
    --disable-background-networking --disable-component-update --disable-default-apps --disable-dev-shm-usage
    --hide-scrollbars --force-device-scale-factor=1 --autoplay-policy=user-gesture-required
    --remote-debugging-port=0 --remote-allow-origins=*
"""


class Page:
    """One tab: loads addresses, runs JavaScript, clicks, types, takes pictures; remembers errors and requests."""

    def __init__(self, address: str) -> None:
        import websocket

        self._socket = websocket.create_connection(address, timeout=ANSWER_SECONDS, suppress_origin=True)
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer; events on the way are kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                answer: dict[str, Any] = message["result"]
                return answer
            self._events.append(message)

    def load(self, path: Path, width: int = 1280, height: int = 900, ready: str = FILLED) -> None:
        """Opens a file and waits until its script is ready."""
        self.size(width, height)
        self._events.clear()
        self.call("Page.bringToFront")  # nothing is drawn in a tab that is not seen
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait(f"document.readyState === 'complete' && {ready}")

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def run(self, script: str, gesture: bool = True) -> Any:
        """The value of an expression, as if a person had caused it."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=gesture
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = ANSWER_SECONDS) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"still not: {condition}"
            time.sleep(0.05)

    def click(self, selector: str, number: int = 0) -> None:
        """A click of the mouse in the middle of an element."""
        place = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        box = self.run(
            f"(() => {{ const e = {place}; e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            " return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        self.click_at(*box)

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: str = "", text: str = "") -> None:
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code or key, **extra)

    def slide(self, selector: str, value: float) -> None:
        """Moves a slider as its own arrow keys would."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {value};"
            " e.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def screenshot(self, path: Path, full: bool = True) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(data["data"]))

    def heard(self, *methods: str) -> list[dict[str, Any]]:
        """The events of these kinds since the page was opened."""
        self.run("1")  # whatever is on the way arrives first
        return [event["params"] for event in self._events if event.get("method") in methods]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console."""
        entries = [e["entry"] for e in self.heard("Log.entryAdded")]
        found = [e["text"] for e in entries if e["level"] in ("error", "warning")]
        calls = [e for e in self.heard("Runtime.consoleAPICalled") if e["type"] in ("error", "warning", "assert")]
        found += [str(e["args"]) for e in calls]
        return found + [str(e["exceptionDetails"]) for e in self.heard("Runtime.exceptionThrown")]

    def requests(self) -> list[str]:
        """The schemes and names of what the page asked for, but for itself and what it holds."""
        found = [e["request"]["url"] for e in self.heard("Network.requestWillBeSent") if e.get("type") != "Document"]
        return [url for url in found if not url.startswith(("data:", "blob:"))]


@contextmanager
def chromium() -> Iterator[Callable[[], Page]]:
    """A browser with a profile of its own; calling what it gives opens a tab."""
    assert PROGRAM is not None
    pages: list[Page] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [PROGRAM, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
        environment = {**os.environ, "HOME": profile, "XDG_CONFIG_HOME": profile, "XDG_CACHE_HOME": profile}
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            port = _port(Path(profile) / "DevToolsActivePort", process)

            def new_tab() -> Page:
                pages.append(Page(_open_tab(port)))
                return pages[-1]

            yield new_tab
        finally:
            for page in pages:
                page.close()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        lines = file.read_text().split() if file.is_file() else []
        if len(lines) == 2:
            return int(lines[0])
        time.sleep(0.05)
    raise RuntimeError(f"{PROGRAM} does not start (exit status {process.poll()})")


def _open_tab(port: int) -> str:
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    connection.request("PUT", "/json/new?about:blank")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    address: str = answer["webSocketDebuggerUrl"]
    return address
