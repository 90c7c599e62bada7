"""One tab of a headless Chromium of our own, spoken to over the DevTools protocol; no driver needed."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import websocket

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --disable-background-networking "
    "--disable-component-update --remote-debugging-port=0 --remote-allow-origins=*"
).split()


class Tab:
    """A browser with one page, closed at the end of a with block; `events` holds what it reported since the last open()."""

    def __init__(self, profile: Path):
        self.browser = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.PIPE,
            text=True,
        )
        line = next(x for x in self.browser.stderr if "DevTools listening" in x)
        with urllib.request.urlopen(f"http://{line.split('/')[2]}/json") as f:
            target = next(t for t in json.load(f) if t["type"] == "page")
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=120)
        self.ids, self.events = itertools.count(1), []
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.browser.terminate()
        self.browser.wait()

    def call(self, method: str, **values) -> dict:
        """The answer to one command. Raises RuntimeError where the browser refuses it."""
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": values}))
        while (message := json.loads(self.socket.recv())).get("id") != number:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def value(self, expression: str):
        """What a JavaScript expression or promise gives, as JSON. Raises RuntimeError with what it threw."""
        told = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in told:
            raise RuntimeError(
                told["exceptionDetails"].get("exception", {}).get("description")
                or told["exceptionDetails"]["text"]
            )
        return told["result"].get("value")

    def open(self, url: str, width: int, scheme: str):
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            media="",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call("Page.navigate", url=url)
        while not self.seen("Page.loadEventFired"):
            self.events.append(json.loads(self.socket.recv()))

    def wait(self, expression: str, seconds: float):
        """Poll an expression until it is true; its value. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not (value := self.value(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {seconds:.0f} s: {expression}")
            time.sleep(0.5)
        return value

    def seen(self, *methods: str) -> list[dict]:
        return [e["params"] for e in self.events if e.get("method") in methods]

    def requests(self) -> set[str]:
        """What was asked for beyond the page's own bytes."""
        urls = {e["request"]["url"] for e in self.seen("Network.requestWillBeSent")}
        return {u for u in urls if not u.startswith(("data:", "blob:"))}

    def press(self, key: str, code: int, text: str = ""):
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **({"text": text} if kind == "keyDown" and text else {}),
            )

    def shot(self, file: Path, width: int, height: int):
        file.parent.mkdir(parents=True, exist_ok=True)
        area = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        file.write_bytes(
            base64.b64decode(
                self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=area)["data"]
            )
        )
