"""Run All on the untouched notebooks of the reports: `make test-notebooks`.

tests/test_notebook_form.py holds their form, and runs them with tiny parameters.
"""

import pytest

from qa_lib.page import render
from qa_lib.settings import params
from qa_lib.settings.params import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("slug", params.list_claimed_reports())
def test_run_all_untouched(slug, tmp_path, monkeypatch):
    # The runs are those of the checkout: what is trained already is not trained again.
    for name in ("QA_RECORDS", "QA_FIGURES"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(ROOT)
    nb = render.execute(render.read_notebook(slug), slug, {})
    assert all(c.execution_count for c in nb.cells if c.cell_type == "code")
