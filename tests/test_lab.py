"""JupyterLab as a reader has it. Run All of the ExBERT notebook shows every figure.

`make test-browser` runs this in Chromium. The notebook trains with tiny parameters into an empty
store, which takes minutes. With QA_RUNS=folder it is untouched, and trains only the runs that are
missing there.
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
from test_notebook_form import FILES, TINY

from qa_lib.page import render
from qa_lib.reports import plans
from qa_lib.settings.params import ROOT

# Read before the store of each test takes its place.
RUNS = os.environ.get("QA_RUNS")
SHOTS = Path(os.environ.get("QA_SHOTS", ""))
MINUTES = 30
LAB = [
    "--no-browser",
    "--allow-root",
    "--ServerApp.port=0",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.extension_manager=readonly",
]
# With these settings the server asks nothing of the network.
QUIET = {"fetchNews": "false", "checkForUpdates": False}
BOOK = "[...window.jupyterapp?.shell.widgets('main') ?? []].find(w => w.content?.widgets?.length)"
READY = """jupyterapp.restored.then(() => book.revealed).then(() => book.sessionContext.ready)
  .then(() => { jupyterapp.shell.activateById(book.id); })"""
RUN = """jupyterapp.commands.execute("notebook:run-all-cells")
  .then(() => { window.ended = "ended" }, e => { window.ended = String(e) }); 0"""
# Cells out of sight are not laid out, so the first scroll to one may miss it. What is folded is
# opened, and the images of a cell need not fit on the screen together.
SEEN = """book.content.scrollToItem(%d, "center").then(() => {
  const cell = book.content.widgets[%d].node;
  cell.querySelectorAll("details").forEach(folded => { folded.open = true; });
  const images = [...cell.querySelectorAll("img")];
  return images.length > 0 && images.every(image => {
    image.scrollIntoView();
    const box = image.getBoundingClientRect();
    return image.naturalWidth && image.checkVisibility()
      && box.width > 100 && box.bottom > 0 && box.top < innerHeight; }); })"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Return a copy of the notebook. Runs, records and figures are those of this test."""
    for name in ("QA_RUNS", "QA_RECORDS", "QA_FIGURES"):
        monkeypatch.setenv(name, str(tmp_path / name))
    nb = nbformat.read(ROOT / "notebooks" / FILES["exbert"], as_version=nbformat.NO_CONVERT)
    if RUNS:
        monkeypatch.setenv("QA_RUNS", str(Path(RUNS).resolve()))
    else:
        values = plans.load_params("exbert", "quick", TINY["exbert"]).model_dump()
        cell = render.find_parameters(nb)
        cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nb, tmp_path / "notebooks" / "lab.ipynb")
    return tmp_path / "notebooks" / "lab.ipynb"


@pytest.fixture
def address(notebook, tmp_path, monkeypatch):
    """Start a JupyterLab and yield the address at which it shows the notebook.

    The user's settings are neither read nor written.
    """
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        monkeypatch.setenv(f"JUPYTER_{name}", str(tmp_path / name))
    user_settings = tmp_path / "CONFIG_DIR" / "lab" / "user-settings"
    settings = user_settings / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
    token = secrets.token_hex()
    monkeypatch.setenv("JUPYTER_TOKEN", token)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    log_file = tmp_path / "lab.log"
    with log_file.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *LAB, f"--ServerApp.root_dir={tmp_path}"],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    try:
        end = time.monotonic() + 120
        servers = []
        while not servers:
            assert server.poll() is None, log_file.read_text()
            assert time.monotonic() < end, log_file.read_text()
            time.sleep(0.5)
            servers = list((tmp_path / "RUNTIME_DIR").glob("jpserver-*.json"))
        url = json.loads(servers[0].read_text())["url"]
        yield f"{url}lab/tree/{notebook.relative_to(tmp_path)}?token={token}"
    finally:
        # the kernel ends with the server
        server.terminate()
        server.wait(60)


def test_run_all_shows_every_figure(address, tmp_path):
    with Tab(tmp_path / "chromium") as tab:
        tab.open(address, 1400, "light")
        # in a headless browser no window has the focus
        tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
        tab.wait(f"!!(window.book = {BOOK})", 120)
        tab.value(READY)
        tab.value(RUN)
        assert tab.wait("window.ended", 60 * MINUTES) == "ended"
        cells = tab.value("book.content.model.toJSON().cells")
        for cell in cells:
            outputs = cell.get("outputs", [])
            assert [o for o in outputs if o["output_type"] == "error"] == []
            if cell["cell_type"] == "code" and cell["source"]:
                assert cell["execution_count"]
        drawn = [i for i, c in enumerate(cells) if "<img" in json.dumps(c.get("outputs", []))]
        assert len(drawn) >= 4
        for i in drawn:
            tab.wait(SEEN % (i, i), 30)
        if SHOTS.name:
            tab.shot(SHOTS / "lab.png", 1400, 900)
        host = address.split("/lab/")[0]
        own = (host, host.replace("http", "ws"))
        assert [u for u in tab.requests() if not u.startswith(own)] == []
