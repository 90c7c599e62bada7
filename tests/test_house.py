"""The rules of the house: dependencies, imports, files, Makefile, DATA.md."""
import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

ROOT = Path(__file__).parent.parent
LIBRARY = {p.stem: p for p in sorted((ROOT / "qa_lib").glob("*.py"))}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# A module imports what stands above it, and siblings; the reports import no sibling.
IDEAS = {"moe", "exbert", "road", "distill", "smart", "multitask"}
CORE = [{"settings"}, {"params"}, {"spec"}, {"files"}, {"corpora", "sentences", "sources"},
        {"data", "features", "metrics", "augment"}, {"encoders", "stmoe"}, {"questions"}, IDEAS,
        {"scoring"}, {"frozen"}, {"build"}, {"train"}, {"pool"}, {"study"}, {"own"}]
APART = {"runs": {"files", "params", "spec"}, "claims": {"params"}, "resample": {"params"},
         "stats": {"claims", "resample", "params"},
        "power": {"claims", "params"}, "trials": {"runs", "spec"}, "__init__": set(),
         "advice": {"claims", "tables", "stats", "runs", "params"},
         "verify": {"advice", "claims", "files", "power", "stats", "tables", "runs", "params",
                    "spec"},
         "tables": {"runs", "stats", "trials", "params", "spec"}, "figures": {"tables"}, "report": {"runs", "params", "spec"},
         "findings": {"advice", "report", "runs", "tables", "verify"},
         "render": {"report", "runs", "params"}, "overview": {"claims", "findings", "render", "report", "runs", "verify", "params"}}
MAY_ALSO = {name: {"runs", "trials"} for name in IDEAS | {"sources", "scoring", "build", "train", "pool", "study", "own"}}

# What training may import: packages of a GPU machine's image, and wheels carried to it.
IMAGE = {"torch", "transformers", "accelerate", "numpy", "pandas", "scipy", "pyarrow",
         "safetensors", "tokenizers", "yaml", "filelock", "psutil", "tqdm", "huggingface_hub"}
CARRIED = {"pydantic", "datasets", "evaluate"}
EXTRA = {"ray"}          # only where RAY_ADDRESS is set, and then said in one sentence if it is not installed


@cache
def imports(module: str) -> frozenset[tuple[str, bool]]:
    """(name, at top level?) of a module's imports; `from qa_lib import x` counts as qa_lib.x."""
    tree, found = ast.parse(LIBRARY[module].read_text()), set()
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            found |= {(a.name, top) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"qa_lib/{module}.py: relative import"
            inside = [f"qa_lib.{a.name}" for a in node.names] if node.module == "qa_lib" else []
            found |= {(name, top) for name in inside or [node.module]}
    return frozenset(found)


def ours(module: str) -> set[tuple[str, bool]]:
    return {(name.split(".")[1], top) for name, top in imports(module) if name[:7] == "qa_lib."}


def third_party(module: str) -> set[str]:
    names = {name.split(".")[0] for name, _ in imports(module)}
    return names - sys.stdlib_module_names - {"qa_lib"}


def allowed(module: str) -> set[str]:
    if module in APART:
        return APART[module]
    layer = next(i for i, names in enumerate(CORE) if module in names)
    siblings = set() if module in IDEAS else CORE[layer]
    return set().union(*CORE[:layer]) | siblings | MAY_ALSO.get(module, set())


@pytest.mark.parametrize("module", LIBRARY)
def test_imports_run_one_way(module):
    assert {name for name, _ in ours(module)} <= allowed(module)


def test_reports_need_no_torch():
    code = "import qa_lib.report, qa_lib.runs, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_import_is_a_declared_dependency():
    declared = {canonical(Requirement(r).name) for r in PROJECT["dependencies"]}
    wheels = packages_distributions()
    for module in LIBRARY:
        for name in third_party(module) - EXTRA:
            assert {canonical(d) for d in wheels[name]} & declared, f"{name}, in qa_lib/{module}.py"


def test_training_imports_only_what_a_bare_machine_gets():
    reached, todo = set(), {"study"} | IDEAS & set(LIBRARY)  # study finds the reports by name
    while todo:
        module = todo.pop()
        reached.add(module)
        todo |= {name for name, _ in ours(module)} - reached
    assert "train" in reached and not reached & {"report", "render"}
    for module in reached:
        assert third_party(module) <= IMAGE | CARRIED | EXTRA, f"qa_lib/{module}.py"
    assert EXTRA <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("module", LIBRARY)
def test_files_are_flat(module):
    assert module != "utils" and not list((ROOT / "qa_lib").glob("*/*.py"))


def test_the_readme_lists_every_module():
    readme = (ROOT / "README.md").read_text()
    listed = re.findall(r"^      (\w+)\.py ", readme, re.M)
    assert set(listed) == set(LIBRARY) - {"__init__"}
    assert all({name for name, _ in ours(m)} <= set(listed[:i]) for i, m in enumerate(listed)), "imports what stands below it"
    written = re.sub(r"<!-- verdicts -->.*<!-- /verdicts -->", "", readme, flags=re.S)      # the rest is generated
    assert len(written.splitlines()) <= 185


UNSAFE = (r"(?:import|from) (?:pickle|dill|joblib)\b|torch\.load\(|trust_remote_code ?= ?True"
          r"|allow_pickle ?= ?True|yaml\.(?:unsafe_|full_)?load\(")


@pytest.mark.parametrize("file", [*LIBRARY.values(), *NOTEBOOKS], ids=lambda p: p.name)
def test_nothing_unsafe_is_loaded(file):
    found = re.findall(UNSAFE, file.read_text())
    assert not found


def lacks_encoding(call: ast.Call) -> bool:
    """Does a call read or write text as the locale says?"""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    given = {keyword.arg for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name == "open" and owner not in ("gzip", "Image", "os"):       # these open bytes
        modes = {arg.value for arg in call.args if isinstance(arg, ast.Constant)}
        return not modes & {"rb", "wb"}
    return name in ("read_text", "write_text") or "text" in given and name in ("run", "Popen")


def test_text_has_its_encoding():
    """Else a locale without UTF-8 reads other letters, or none. claims.py is frozen; it reads ASCII."""
    found = []
    for file in [*LIBRARY.values(), *NOTEBOOKS]:
        sources = [file.read_text(encoding="utf-8")]
        if file.suffix == ".ipynb":
            cells = json.loads(sources[0])["cells"]
            sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        calls = [x for text in sources for x in ast.walk(ast.parse(text)) if isinstance(x, ast.Call)]
        found += [f"{file.name}, line {x.lineno}" for x in calls if lacks_encoding(x)]
    assert [x for x in found if not x.startswith("claims.py")] == []


def test_git_keeps_line_ends():
    """Whatever core.autocrlf says: claims and rules are known by their sha256."""
    told = subprocess.run(["git", "check-attr", "text", "eol", "--", "params/claims/FROZEN", "qa_lib/claims.py",
                           "records/moe/examples-000.parquet", "figures/moe/real/fig1_model.png"],
                          cwd=ROOT, capture_output=True, text=True).stdout
    if not told:
        pytest.skip("not a checkout of git")
    assert "FROZEN: eol: lf" in told and "claims.py: eol: lf" in told
    assert "parquet: text: unset" in told and "png: text: unset" in told


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_stripped(file):
    notebook = json.loads(file.read_text())
    assert "papermill" not in notebook["metadata"]
    assert not [c for c in notebook["cells"] if c.get("outputs") or c.get("execution_count")]


# ---- dependencies ----

def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    lines = [x for x in lines if not x.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), "name==version alone"
    found = {canonical(x.split("==")[0]): x.split("==")[1] for x in lines}
    assert len(found) == len(lines)
    return found


def test_the_lock_pins_what_pyproject_asks_for():
    listed = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    for wanted in map(Requirement, listed):
        assert wanted.specifier.contains(pins()[canonical(wanted.name)]), f"{wanted}: run make lock"


def test_the_lock_leaves_the_build_of_torch_open():
    assert not [n for n in pins() if n.startswith(("nvidia-", "cuda-", "triton", "qa-study"))]


def test_conda_uses_the_lock():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert {"make", "git", "pip"} < set(conda)
    python = next(x for x in conda if x.startswith("python="))
    assert PROJECT["requires-python"] == ">=" + python.removeprefix("python=")


# ---- Makefile ----

def make(*args: str) -> subprocess.CompletedProcess:
    """make in the repository: this Python first on the path, nothing of an outer make inherited."""
    ours = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PROFILE", "VENV"}
    env = {k: v for k, v in os.environ.items() if k not in ours}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return subprocess.run(["make", *args], cwd=ROOT, env=env, capture_output=True, text=True)


def test_a_switch_of_0_is_off():
    lines = [make("-n", "train-exbert", "VENV=", "PROFILE=quick", f"FRESH={x}", f"YES={x}").stdout for x in (0, 1)]
    assert ["--fresh --yes" in x for x in lines] == [False, True] and "--fresh" not in lines[0] and "--yes" not in lines[0]


def test_what_is_quoted_reaches_the_program():
    told = make("-n", "train-exbert", "VENV=", "PROFILE=real", "DATA=/o'brien/x y").stdout.splitlines()[-1]
    assert shlex.split(told)[-2:] == ["--data", "/o'brien/x y"]


def test_every_variable_that_make_tells_of_is_known():
    told = set(re.findall(r"([A-Z_]+)=", make("help").stdout))
    assert {"HOLD", "DATA", "DOMAIN_A"} <= told
    assert make("-n", "profile", *[f"{name}=1" for name in told - {"PROFILE", "VENV"}]).returncode == 0


def test_help_lists_every_target():
    database = make("-npq", "VENV=", "help").stdout
    phony = set(re.search(r"^\.PHONY: (.*)$", database, re.M)[1].split()) - {"FORCE", "environment", "browser", "own-defined"}
    listed = {line.split()[0] for line in make("help").stdout.splitlines() if line.startswith("  ")}
    assert {"reproduce-exbert", "test"} <= phony <= listed


@pytest.mark.parametrize("profile", ["quick", "real", "paper"])
def test_the_recipe_reads_as_study_then_page(profile):
    told = make("-n", "reproduce-exbert", "VENV=", f"PROFILE={profile}", "DATA=a b",
                "PARAMS=seeds=[0,1] epochs=1")
    study, page = [x for x in told.stdout.splitlines() if "qa_lib" in x]
    flags = f"exbert --profile {profile} --data 'a b' -p 'seeds=[0,1]' -p 'epochs=1'"
    assert study == f"python -m qa_lib.study {flags}"
    assert page == f"python -m qa_lib.render {flags}"
    assert told.stdout.startswith(f"echo 'profile {profile}: ")


def test_one_figure_alone():
    told = make("-n", "figures/exbert/real/fig9_none.png", "VENV=").stdout
    assert "qa_lib.render exbert --profile real --only fig9_none" in told
    assert told.count("qa_lib.render") == 1


@pytest.mark.parametrize("args, says", [
    (["reproduce-exbert", "PROFILE=quik"], "quik"),
    (["-B", ".venv/.installed", "PYTHON=false"], "Python 3.11 or newer"),
    (["reproduce-exbert", "VENV=nowhere"], "nowhere/bin/python lacks"),
    (["check-data", "VENV="], "DATA="),
    (["-n", "reproduce-exbert", "seeds=[0]"], 'PARAMS="seeds=…"'),
    (["-n", "reproduce-exbert", "profile=real"], "profile= is no variable"),
    (["-n", "train-exbert", "YES=no"], "1 or 0, not no"),
])
def test_a_mistake_ends_in_one_sentence(args, says):
    told = make(*args)
    assert told.returncode == 2
    assert len(told.stderr.splitlines()) == 1 and says in told.stderr


# ---- DATA.md ----

def test_every_line_of_the_data_table_parses():
    rows = [x for x in (ROOT / "DATA.md").read_text().splitlines() if x.startswith("| `")]
    assert len(rows) > 40
    for row in rows:
        path, n, sha, licence, source, change = [c.strip() for c in row.strip("|").split("|")]
        assert re.fullmatch(r"`(qa|nlu)/\w+/\w+\.jsonl\.gz`", path), row
        assert int(n) > 0 and re.fullmatch(r"`[0-9a-f]{64}`", sha), row
        assert licence and change and re.search(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}:", source), row


def test_every_folder_dataset_is_in_the_data_table():
    table = (ROOT / "DATA.md").read_text()
    folder = yaml.safe_load((ROOT / "params" / "datasets.yaml").read_text())["folder"]
    for file in [f for d in folder.values() for f in d.get("train", []) + d.get("test", [])]:
        assert f"| `{file}` |" in table
