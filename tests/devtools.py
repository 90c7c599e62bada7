"""One tab of a headless Chromium, driven over the DevTools protocol without a driver."""

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
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
]


class Tab:
    """A browser with one page, closed at the end of a with block.

    `events` holds what the browser has reported since the last open().
    """

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
        self.ids = itertools.count(1)
        self.events = []
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.browser.terminate()
        self.browser.wait()

    def call(self, method: str, **values) -> dict:
        """Return the answer to one command. Raises RuntimeError if the browser refuses it."""
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": values}))
        message = json.loads(self.socket.recv())
        while message.get("id") != number:
            self.events.append(message)
            message = json.loads(self.socket.recv())
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def value(self, expression: str):
        """Return the value of a JavaScript expression or promise, through JSON.

        Raises RuntimeError with the description of what the expression threw.
        """
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            description = details.get("exception", {}).get("description")
            raise RuntimeError(description or details["text"])
        return answer["result"].get("value")

    def open(self, url: str, width: int, scheme: str):
        """Load a page in a window of a width, in the colour scheme light or dark."""
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
        """Poll an expression until it is true, and return its value. Raises TimeoutError."""
        end = time.monotonic() + seconds
        value = self.value(expression)
        while not value:
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {seconds:.0f} s: {expression}")
            time.sleep(0.5)
            value = self.value(expression)
        return value

    def seen(self, *methods: str) -> list[dict]:
        """Return the parameters of the events of some kinds since the last open()."""
        return [e["params"] for e in self.events if e.get("method") in methods]

    def requests(self) -> set[str]:
        """Return the addresses that were requested, without data inside the page."""
        urls = {e["request"]["url"] for e in self.seen("Network.requestWillBeSent")}
        return {u for u in urls if not u.startswith(("data:", "blob:"))}

    def press(self, key: str, code: int, text: str = ""):
        """Press and release a key that types a text or none."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        typed = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def shot(self, file: Path, width: int, height: int):
        """Write a screenshot of the page's upper left part to a PNG file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        area = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=area)
        file.write_bytes(base64.b64decode(answer["data"]))
