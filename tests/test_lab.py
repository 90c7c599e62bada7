"""JupyterLab as a reader has it: the ExBERT notebook opened in Chromium, Run All, no error, every figure on the screen.

`make test-browser`. The notebook trains with tiny parameters into an empty store (minutes); with QA_RUNS=folder it is untouched,
and trains only what is missing there.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from devtools import CHROMIUM, Tab
from test_notebooks import NOTEBOOKS, TINY

from qa_lib.reports import plans
from qa_lib.settings.params import ROOT

RUNS = os.environ.get("QA_RUNS")  # before the store of each test takes its place
SHOTS = Path(os.environ.get("QA_SHOTS", ""))
MINUTES = 30
LAB = [
    "--no-browser",
    "--allow-root",
    "--ServerApp.port=0",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.extension_manager=readonly",
]
QUIET = {
    "fetchNews": "false",
    "checkForUpdates": False,
}  # so that the server asks nothing of the network
BOOK = "[...window.jupyterapp?.shell.widgets('main') ?? []].find(w => w.content?.widgets?.length)"
READY = """jupyterapp.restored.then(() => book.revealed).then(() => book.sessionContext.ready)
  .then(() => { jupyterapp.shell.activateById(book.id); })"""
RUN = """jupyterapp.commands.execute("notebook:run-all-cells")
  .then(() => { window.ended = "ended" }, e => { window.ended = String(e) }); 0"""
# Cells out of sight are not laid out, so the first scroll to one may miss it.
SEEN = """book.content.scrollToItem(%d, "center").then(() => {
  const images = [...book.content.widgets[%d].node.querySelectorAll("img")];
  images[0]?.scrollIntoView();
  return images.length > 0 && images.every(image => { const box = image.getBoundingClientRect();
    return image.naturalWidth && image.checkVisibility() && box.width > 100 && box.bottom > 0 && box.top < innerHeight; }); })"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A copy of the notebook in a folder of its own; runs, records and figures of this test alone."""
    for name in ("QA_RUNS", "QA_RECORDS", "QA_FIGURES"):
        monkeypatch.setenv(name, str(tmp_path / name))
    nb = nbformat.read(NOTEBOOKS["exbert"], as_version=nbformat.NO_CONVERT)
    if RUNS:
        monkeypatch.setenv("QA_RUNS", str(Path(RUNS).resolve()))
    else:
        values = plans.load_params("exbert", "quick", TINY["exbert"]).model_dump()
        nb.cells[1].source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nb, tmp_path / "notebooks" / "lab.ipynb")
    return tmp_path / "notebooks" / "lab.ipynb"


@pytest.fixture
def address(notebook, tmp_path, monkeypatch):
    """Where a JupyterLab of our own shows the notebook; nothing of the user's settings is read or written."""
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        monkeypatch.setenv(f"JUPYTER_{name}", str(tmp_path / name))
    settings = (
        tmp_path / "CONFIG_DIR" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    )
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
    monkeypatch.setenv("JUPYTER_TOKEN", token := secrets.token_hex())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *LAB, f"--ServerApp.root_dir={tmp_path}"],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    try:
        end = time.monotonic() + 120
        while not (found := list((tmp_path / "RUNTIME_DIR").glob("jpserver-*.json"))):
            assert server.poll() is None, (tmp_path / "lab.log").read_text()
            assert time.monotonic() < end, (tmp_path / "lab.log").read_text()
            time.sleep(0.5)
        url = json.loads(found[0].read_text())["url"]
        yield f"{url}lab/tree/{notebook.relative_to(tmp_path)}?token={token}"
    finally:
        server.terminate()  # and with it the kernel
        server.wait(60)


def test_run_all(address, tmp_path):
    with Tab(tmp_path / "chromium") as tab:
        tab.open(address, 1400, "light")
        tab.call(
            "Emulation.setFocusEmulationEnabled", enabled=True
        )  # headless, no window has the focus
        tab.wait(f"!!(window.book = {BOOK})", 120)
        tab.value(READY)
        tab.value(RUN)
        assert tab.wait("window.ended", 60 * MINUTES) == "ended"
        cells = tab.value("book.content.model.toJSON().cells")
        outputs = [o for c in cells for o in c.get("outputs", [])]
        assert [o for o in outputs if o["output_type"] == "error"] == []
        assert all(c["execution_count"] for c in cells if c["cell_type"] == "code" and c["source"])
        drawn = [i for i, c in enumerate(cells) if "<img" in json.dumps(c.get("outputs", []))]
        assert len(drawn) >= 4
        for i in drawn:
            tab.wait(SEEN % (i, i), 30)
        if SHOTS.name:
            tab.shot(SHOTS / "lab.png", 1400, 900)
        host = address.split("/lab/")[0]
        assert {
            u for u in tab.requests() if not u.startswith((host, host.replace("http", "ws")))
        } == set()
