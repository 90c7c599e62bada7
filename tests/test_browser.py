"""Every rendered page in headless Chromium, on a phone and a desk, light and dark: no request, no
console error, every image decoded and described, nothing wider than the window.

`make test-browser`; QA_SHOTS=folder keeps screenshots to look at.
"""
import base64
import itertools
import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import websocket  # jupyter_server's

from qa_lib import runs

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PAGES = sorted(runs.FIGURES.glob("*/*/report.html"))
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
         "--disable-background-networking --disable-component-update --remote-debugging-port=0 "
         "--remote-allow-origins=*").split()
CHECK = """JSON.stringify({
  images: [...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length,
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  dead: [...document.querySelectorAll("a[href^='#']")].filter(
      a => !document.getElementById(a.hash.slice(1))).length,
  maths: document.querySelectorAll("math").length,
  height: document.documentElement.scrollHeight})"""

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
              pytest.mark.skipif(not PAGES, reason="no page yet; make reproduce-exbert")]


class Tab:
    """One tab of a browser of our own, spoken to over the DevTools protocol."""

    def __init__(self, profile: Path):
        self.browser = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={profile}",
                                         "about:blank"],
                                        stderr=subprocess.PIPE, text=True)
        line = next(x for x in self.browser.stderr if "DevTools listening" in x)
        with urllib.request.urlopen(f"http://{line.split('/')[2]}/json") as f:
            target = next(t for t in json.load(f) if t["type"] == "page")
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=60)
        self.ids, self.events = itertools.count(1), []
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values) -> dict:
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": values}))
        while (message := json.loads(self.socket.recv())).get("id") != number:
            self.events.append(message)
        return message["result"]

    def open(self, page: Path, width: int, scheme: str) -> dict:
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        while not self.seen("Page.loadEventFired"):
            self.events.append(json.loads(self.socket.recv()))
        return json.loads(self.call("Runtime.evaluate", expression=CHECK)["result"]["value"])

    def seen(self, *methods: str) -> list[dict]:
        return [e["params"] for e in self.events if e.get("method") in methods]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    tab = Tab(tmp_path_factory.mktemp("chromium"))
    yield tab
    tab.browser.terminate()
    tab.browser.wait()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("page", PAGES, ids=lambda p: "-".join(p.parts[-3:-1]))
def test_page(tab, page, width, scheme):
    found = tab.open(page, width, scheme)
    requests = {e["request"]["url"] for e in tab.seen("Network.requestWillBeSent")}
    if folder := os.environ.get("QA_SHOTS"):
        area = {"x": 0, "y": 0, "width": width, "height": found["height"], "scale": 1}
        shot = tab.call("Page.captureScreenshot", captureBeyondViewport=True, clip=area)
        name = "-".join([*page.parts[-3:-1], str(width), scheme]) + ".png"
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_bytes(base64.b64decode(shot["data"]))
    assert {u for u in requests if not u.startswith("data:")} == {page.as_uri()}
    assert tab.seen("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []
    assert page.stat().st_size < 1_200_000 and found["maths"] > 0
    assert (found["images"], found["dead"], found["wider"]) == (0, 0, 0)
