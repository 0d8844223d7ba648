"""Headless Chromium, driven by the DevTools protocol: pages, the mouse, keys, screenshots."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 30  # before a page that does not answer fails the test


@contextmanager
def browsing(folder: Path) -> Iterator["Chromium"]:
    """A browser with one page, which keeps its own files in this folder."""
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    own = ("--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank")
    with subprocess.Popen([str(PROGRAM), *options, *own], stderr=subprocess.DEVNULL) as process:
        try:
            place = folder / "DevToolsActivePort"
            deadline = time.monotonic() + SECONDS
            while not (place.exists() and len(place.read_text().split()) == 2):
                assert process.poll() is None and time.monotonic() < deadline, "Chromium does not start"
                time.sleep(0.05)
            port, path = place.read_text().split()
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None, proxy=None) as socket:
                yield Chromium(socket)
        finally:
            process.terminate()


class Chromium:
    """The browser's page; ``errors`` is what its console complained about."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.last = 0
        self.errors: list[str] = []
        self.session = ""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> int:
        """Send a command without waiting for its result, which `result` gives for the returned number."""
        self.last += 1
        command = {"id": self.last, "method": method, "params": parameters}
        self.socket.send(json.dumps(command | ({"sessionId": self.session} if self.session else {})))
        return self.last

    def result(self, number: int) -> Any:
        while True:
            said = json.loads(self.socket.recv(timeout=SECONDS))
            if said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(said["params"]["exceptionDetails"]["exception"]["description"])
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
            elif said.get("id") == number:
                assert "error" not in said, said["error"]
                return said["result"]

    def __call__(self, method: str, **parameters: Any) -> Any:
        return self.result(self.send(method, **parameters))

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        done = self("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.01)

    def size(self, width: int, height: int, scale: float = 1.0, phone: bool = False) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone)

    def media(self, **features: str) -> None:
        """Set what media queries ask for, such as prefers_color_scheme."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self("Emulation.setEmulatedMedia", features=named)

    def mouse(self, kind: str, x: float, y: float, down: bool = False) -> int:
        """Send a mouse event, of the kind Moved, Pressed or Released, without waiting for it."""
        button = "none" if kind == "Moved" and not down else "left"
        clicks = 0 if kind == "Moved" else 1
        return self.send(
            "Input.dispatchMouseEvent",
            type=f"mouse{kind}",
            x=x,
            y=y,
            button=button,
            buttons=int(down),
            clickCount=clicks,
        )

    def stroke(self, points: Sequence[tuple[float, float]]) -> None:
        """Press the mouse's button at the first point, move along the others, and let it go."""
        self.mouse("Moved", *points[0])
        self.mouse("Pressed", *points[0], down=True)
        for point in points[1:]:
            self.mouse("Moved", *point, down=True)
        self.result(self.mouse("Released", *points[-1]))

    def click(self, selector: str) -> None:
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'nearest'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.stroke([(x, y)])

    def key(self, *names: str) -> None:
        for name in names:
            self("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, text=" " if name == " " else "")
            self("Input.dispatchKeyEvent", type="keyUp", key=name, code=name)

    def screenshot(self, whole: bool = False) -> bytes:
        taken = self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(taken["data"])
