"""A headless Chromium, spoken to through pipes. Source: Chrome DevTools Protocol, --remote-debugging-pipe.

Everything that the page asks for over the network, and everything that it says on its console, is kept.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ANSWER_TIMEOUT_S = 30
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


def program() -> str | None:
    """The browser, if this machine has one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class BrowserError(RuntimeError):
    """The browser refused a command, or a script threw."""


class Browser:
    """One browser with one page."""

    def __init__(self, *, width: int = 1400, height: int = 1000) -> None:
        self.requests: list[str] = []
        """What was asked for, as URLs."""
        self.console: list[str] = []
        """Errors and warnings: of the page's console, and of its scripts."""
        self._answers: dict[int, dict[str, Any]] = {}
        self._came = threading.Condition()
        self._next = 0
        self._session: str | None = None
        self._size = (width, height)

    def __enter__(self) -> "Browser":
        found = program()
        if found is None:
            raise BrowserError(f"none of {', '.join(PROGRAMS)} is installed")
        self._home = tempfile.TemporaryDirectory(prefix="matriarch-browser-", ignore_cleanup_errors=True)
        theirs_in, self._out = _pipe()
        self._in, theirs_out = _pipe()
        command = [found, *OPTIONS, f"--user-data-dir={self._home.name}", "about:blank"]

        def place() -> None:
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        self._process = subprocess.Popen(
            command, pass_fds=(3, 4), preexec_fn=place, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "HOME": self._home.name},
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        threading.Thread(target=self._listen, daemon=True).start()
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        self.resize(*self._size)
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        with suppress(OSError, BrowserError):
            self._call("Browser.close")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        self._home.cleanup()

    # ---- what people do ---------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Go to a page; returns when its document is there."""
        self._call("Page.navigate", url=url)
        self.until("document.readyState !== 'loading'")

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Another window, and whether its user likes it dark."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str, *, shift: bool = False) -> None:
        """One key, down and up."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            extra = text if kind == "keyDown" else {}
            self._call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=8 if shift else 0, **extra)

    def click(self, selector: str) -> None:
        """The middle of the first element that is meant, with the pointer."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.run(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Files for a file input."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    # ---- what is to be seen -----------------------------------------------------------------------------------------

    def run(self, script: str) -> Any:
        """What an expression comes to. Raises: BrowserError when it throws."""
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise BrowserError(json.dumps(found["exceptionDetails"])[:500])
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """What an element says."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def until(self, script: str, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """The first value of an expression that counts as true. Raises: TimeoutError."""
        return _until(lambda: self.run(script), script, timeout_s)

    def picture(self, path: Path) -> None:
        """Takes a picture of the whole page."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        taken = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(taken["data"]))

    # ---- how it is spoken to ----------------------------------------------------------------------------------------

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._next += 1
        number = self._next
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        with self._came:
            if not self._came.wait_for(lambda: number in self._answers, ANSWER_TIMEOUT_S):
                raise TimeoutError(f"{method} was not answered")
            answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _listen(self) -> None:
        rest = b""
        while piece := os.read(self._in, 1 << 16):
            *messages, rest = (rest + piece).split(b"\0")
            for message in messages:
                self._hear(json.loads(message))
        os.close(self._in)

    def _hear(self, message: dict[str, Any]) -> None:
        if "id" in message:
            with self._came:
                self._answers[message["id"]] = message
                self._came.notify_all()
            return
        told = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                self.console.append(json.dumps(told["exceptionDetails"])[:500])
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.console.append(json.dumps(told["args"])[:500])
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.console.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not among the numbers that the browser expects it at."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 16) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _until(look: Callable[[], Any], what: str, timeout_s: float) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if found := look():
            return found
        time.sleep(0.02)
    raise TimeoutError(f"not within {timeout_s:g} s: {what}")
