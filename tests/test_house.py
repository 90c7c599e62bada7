"""The rules of the house: dependencies, imports, files, Makefile, DATA.md."""

import ast
import json
import os
import re
import shlex
import shutil
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

from qa_lib.__main__ import VERBS, run_verb

ROOT = Path(__file__).parent.parent
LIBRARY = {
    p.relative_to(ROOT / "qa_lib").as_posix(): p for p in sorted((ROOT / "qa_lib").rglob("*.py"))
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# The rooms of qa_lib, and the rooms that each may import beside itself. Imports run one way.
ROOMS = {
    "settings": set(),
    "tasks": {"settings"},
    "models": {"settings", "tasks"},
    "store": {"settings"},
    "data": {"settings", "tasks", "store"},
    "training": {"settings", "tasks", "models", "store", "data"},
    "reports": {"settings", "tasks", "data", "store"},
    "evidence": {"settings", "tasks", "data", "store", "reports"},
    "own_data": {"settings", "tasks", "data", "store", "reports", "evidence"},
    "page": {"settings", "tasks", "data", "store", "reports", "evidence", "own_data"},
}
# Heavy, and looked for only where something is trained, tokenised or read from a hub.
HEAVY = {"torch", "transformers", "datasets", "evaluate"}
# In these rooms no module imports them at its top; but for the metric, which is a class of one of them.
LIGHT = ("settings", "tasks", "data", "store", "reports", "evidence", "own_data", "page")
METRIC = "tasks/span_score.py"

# What training may import: packages of a GPU machine's image, and wheels carried to it.
IMAGE = {
    "torch",
    "transformers",
    "accelerate",
    "numpy",
    "pandas",
    "scipy",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "yaml",
    "filelock",
    "psutil",
    "tqdm",
    "regex",
    "huggingface_hub",
}
CARRIED = {"pydantic", "datasets", "evaluate"}
EXTRA = {
    "ray"
}  # only where RAY_ADDRESS is set, and then said in one sentence if it is not installed


@cache
def imports(module: str) -> frozenset[tuple[str, bool]]:
    """(name, at top level?) of a module's imports; `from qa_lib.x import y` counts as qa_lib.x."""
    tree, found = ast.parse(LIBRARY[module].read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            found |= {(a.name, top) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"qa_lib/{module}: relative import"
            found.add((node.module, top))
    return frozenset(found)


def room_of(module: str) -> str:
    return module.split("/")[0] if "/" in module else ""


def imported_rooms(module: str) -> set[str]:
    names = {name for name, _ in imports(module) if name.startswith("qa_lib.")}
    return {name.split(".")[1] for name in names}


def third_party(module: str) -> set[str]:
    names = {name.split(".")[0] for name, _ in imports(module)}
    return names - sys.stdlib_module_names - {"qa_lib"}


@pytest.mark.parametrize("module", LIBRARY)
def test_imports_run_one_way(module):
    room = room_of(module)
    if room:
        assert imported_rooms(module) <= ROOMS[room] | {room}
    else:  # the command line hands one room's lists to another
        assert module in ("__init__.py", "__main__.py")


@pytest.mark.parametrize("module", [m for m in LIBRARY if room_of(m) in LIGHT and m != METRIC])
def test_heavy_packages_are_imported_where_they_are_used(module):
    assert not {name.split(".")[0] for name, top in imports(module) if top} & HEAVY


def test_verdicts_need_no_torch(tmp_path):
    code = (
        "import sys\n"
        "from qa_lib.__main__ import run_verb\n"
        "run_verb(['verify', 'moe', '--profile', 'real'])\n"
        f"sys.exit(str({HEAVY} & set(sys.modules)))"
    )
    env = os.environ | {"QA_FIGURES": str(tmp_path)}
    env.pop("QA_RECORDS", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.stderr.strip() == "set()", done.stderr


def test_help_is_quick():
    code = (
        "import sys\n"
        "from qa_lib.__main__ import make_parser\n"
        "make_parser().format_help()\n"
        "sys.exit(str({'pandas', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()", done.stderr


def test_every_verb_has_its_help():
    for verb in VERBS:
        with pytest.raises(SystemExit) as end:
            run_verb([verb, "--help"])
        assert end.value.code == 0


def test_every_import_is_a_declared_dependency():
    declared = {canonical(Requirement(r).name) for r in PROJECT["dependencies"]}
    wheels = packages_distributions()
    for module in LIBRARY:
        for name in third_party(module) - EXTRA:
            assert {canonical(d) for d in wheels[name]} & declared, f"{name}, in qa_lib/{module}"


def test_training_imports_only_what_a_bare_machine_gets():
    rooms = {"training", "reports"} | ROOMS["training"] | ROOMS["reports"]
    for module in LIBRARY:
        if room_of(module) in rooms or module == "__main__.py":
            assert third_party(module) <= IMAGE | CARRIED | EXTRA, f"qa_lib/{module}"
    assert EXTRA <= set(PROJECT["optional-dependencies"])


def test_the_tree_of_the_code_is_whole():
    """docs/code.md has a line for each module, under its room."""
    text = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    room, listed = "", []
    for line in text.splitlines():
        if found := re.match(r"  (\w+)/  ", line):
            room = found[1] + "/"
        elif found := re.match(r"    (\w+\.py)  +\S", line):
            listed.append(room + found[1])
    assert sorted(listed) == sorted(
        m for m in LIBRARY if not m.endswith("__init__.py") and m != "__main__.py"
    )
    assert set(ROOMS) == {room_of(m) for m in listed}


UNSAFE = (
    r"(?:import|from) (?:pickle|dill|joblib)\b|torch\.load\(|trust_remote_code ?= ?True"
    r"|allow_pickle ?= ?True|yaml\.(?:unsafe_|full_)?load\("
)


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
    if name == "open" and owner not in ("gzip", "Image", "os"):  # these open bytes
        modes = {arg.value for arg in call.args if isinstance(arg, ast.Constant)}
        return not modes & {"rb", "wb"}
    return name in ("read_text", "write_text") or "text" in given and name in ("run", "Popen")


def test_text_has_its_encoding():
    """Else a locale without UTF-8 reads other letters, or none."""
    found = []
    for file in [*LIBRARY.values(), *NOTEBOOKS]:
        sources = [file.read_text(encoding="utf-8")]
        if file.suffix == ".ipynb":
            cells = json.loads(sources[0])["cells"]
            sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        calls = [
            x for text in sources for x in ast.walk(ast.parse(text)) if isinstance(x, ast.Call)
        ]
        found += [f"{file.name}, line {x.lineno}" for x in calls if lacks_encoding(x)]
    assert found == []


def test_git_keeps_line_ends():
    """Whatever core.autocrlf says: claims and rules are known by their sha256."""
    told = subprocess.run(
        [
            "git",
            "check-attr",
            "text",
            "eol",
            "--",
            "params/claims/FROZEN",
            "qa_lib/evidence/claims.py",
            "records/moe/examples-000.parquet",
            "figures/moe/real/fig1_model.png",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
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


def make(*args: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """make in a folder: this Python first on the path, nothing of an outer make inherited, more variables of the environment."""
    ours = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PROFILE", "VENV"}
    env = {k: v for k, v in os.environ.items() if k not in ours}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return subprocess.run(
        ["make", *args], cwd=folder, env=env | variables, capture_output=True, text=True
    )


# What a shell or make reads as something else than a letter, in the middle of a value and at its start.
ODD = [
    "a b",
    "a  b",
    "$HOME",
    "$(HOME)",
    "$$",
    "a$",
    "`id`",
    "o'brien",
    'a"b',
    "#a",
    "a#b",
    "*",
    "~",
    "(a",
    "a;b&c|d>e",
    "-a",
    "--a=b",
    "a=b",
    "a,b",
    "%",
    "a\\",
    "a\\\\b",
    "é",
    "!x",
    "[a]",
]


@pytest.fixture
def python(tmp_path):
    """An environment whose Python writes down what it was started with, in a folder with an odd name; returns (folder, starts)."""
    folder = tmp_path / "my $env é"
    program = folder / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-c":
    print(True)     # asked whether its packages are there
else:
    with open(os.environ["STARTS"], "a") as file:
        file.write(json.dumps([sys.argv[2:], os.environ.get("QA_RUNS"), os.environ.get("QA_FIGURES")]) + "\\n")
""")
    program.chmod(0o755)

    def starts(*args: str, **variables: str) -> list[list]:
        file = tmp_path / "starts"
        file.write_text("")
        told = make(*args, f"VENV={folder}", STARTS=str(file), **variables)
        assert told.returncode == 0 and not told.stderr, told.stderr
        return [json.loads(line) for line in file.read_text().splitlines()]

    return folder, starts


def test_a_switch_of_0_is_off():
    lines = [
        make("-n", "train-exbert", "VENV=", "PROFILE=quick", f"FRESH={x}", f"YES={x}").stdout
        for x in (0, 1)
    ]
    assert ["--fresh --yes" in x for x in lines] == [False, True]
    assert "--fresh" not in lines[0]
    assert "--yes" not in lines[0]


def test_what_is_quoted_reaches_the_program():
    told = make(
        "-n", "train-exbert", "VENV=", "PROFILE=real", "DATA=/o'brien/x y"
    ).stdout.splitlines()[-1]
    assert shlex.split(told)[-1] == "--data=/o'brien/x y"


@pytest.mark.parametrize("text", ODD)
def test_a_value_reaches_the_program_as_it_was_typed(python, text):
    _, starts = python
    given = {name: text for name in ("DATA", "PARAMS", "SIZE", "WORKERS")}
    flags = [f"--{name.lower()}={text}" for name in ("SIZE", "DATA", "PARAMS", "WORKERS")]
    expected = ["qa_lib", "study", "exbert", "--profile", "quick", *flags]
    line = [f"{name}={value}" for name, value in given.items()]
    [typed] = starts(
        "train-exbert", "PROFILE=quick", *line, f"QA_RUNS={text}", f"QA_FIGURES={text}"
    )
    [exported] = starts("train-exbert", PROFILE="quick", QA_RUNS=text, QA_FIGURES=text, **given)
    assert typed == exported == [expected, text, text]


@pytest.mark.parametrize("text", ODD)
def test_files_of_own_data_reach_the_program_as_they_were_typed(python, text):
    _, starts = python
    own, study, *_ = starts(
        "own", "NAME=mine", f"DOMAIN_A={text}:c", f"DOMAIN_B={text}", QA_RUNS=text
    )
    assert own[0] == [
        "qa_lib",
        "own",
        "--params=domains=[mine-a,mine-b]",
        "--",
        "mine",
        f"{text}:c",
        text,
    ]
    assert f"--data={text}/own/mine.yaml" in study[0]


def test_a_python_whose_path_holds_anything(python, tmp_path):
    """The recipes of the set-up name it too; a ~ is the shell's to look up."""
    folder, _ = python
    home = make("-n", "power", "VENV=~/my $env é", HOME=str(tmp_path))
    assert home.returncode == 0
    assert home.stdout.startswith("~/'my $env é/bin/python' -m qa_lib power")
    set_up = make(
        "-n",
        "-B",
        ".venv/.installed",
        f"PYTHON={folder}/bin/python",
        "TORCH_INDEX=https://x/?a=1&b=2",
    )
    lines = [shlex.split(line) for line in set_up.stdout.splitlines()]
    assert [str(folder / "bin" / "python"), "-m", "venv", ".venv"] in lines
    assert any("--index-url=https://x/?a=1&b=2" in line for line in lines)


@pytest.mark.parametrize("name", ["a b$c", "it's", "a#b", "größe", "(a;b&c)", "-x", "%a"])
def test_a_checkout_whose_path_holds_anything(tmp_path, name):
    folder = tmp_path / name
    for part in ("qa_lib", "params", "notebooks"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", folder)
    for args in (["profile"], ["-n", "reproduce", "VENV=", "PROFILE=real"], ["help"]):
        here, there = make(*args, folder=folder), make(*args, folder=tmp_path)
        assert here.returncode == 0 and here.stdout == make(*args).stdout
        assert there.returncode == 2
    outside = make("-f", str(folder / "Makefile"), folder=tmp_path)
    assert outside.returncode == 0 and outside.stdout == make("help").stdout


def test_make_from_outside_is_one_sentence(tmp_path):
    told = make("-f", str(ROOT / "Makefile"), "profile", folder=tmp_path)
    assert told.returncode == 2 and len(told.stderr.splitlines()) == 1
    assert f"cd to the folder of {ROOT}/Makefile first" in told.stderr
    inside = make("-s", "--no-print-directory", "-C", str(ROOT), "profile", folder=tmp_path)
    assert inside.stdout == make("profile").stdout


def test_make_included_from_another_makefile(tmp_path):
    (tmp_path / "other.mk").write_text(f"include {ROOT}/Makefile\n")
    told = make("-f", str(tmp_path / "other.mk"), "help", folder=tmp_path)
    assert told.returncode == 0 and told.stdout == make("help").stdout


@pytest.mark.parametrize(
    "args",
    [
        ["help"],
        ["profile"],
        ["-n", "reproduce", "VENV="],
        ["-n", "train-moe", "VENV=", "SIZE=small"],
    ],
)
def test_no_variable_is_used_undefined(args):
    assert not make("--warn-undefined-variables", *args).stderr


def test_help_for_a_reader_that_leaves():
    told = subprocess.run(
        ["bash", "-c", "make help | true"], cwd=ROOT, capture_output=True, text=True
    )
    assert not told.stderr


def test_figures_elsewhere(python, tmp_path):
    """QA_FIGURES=folder is where the page is, and what make tells of it."""
    _, starts = python
    (tmp_path / "exbert" / "quick").mkdir(parents=True)
    (tmp_path / "exbert" / "quick" / "fig3_ratios.png").touch()
    programs = starts("figures/exbert/quick/fig3_ratios.png", QA_FIGURES=str(tmp_path))
    assert [start[0][1] for start in programs] == ["study", "render"]
    told = make("-n", "reproduce-exbert", "VENV=", "PROFILE=quick", QA_FIGURES="/elsewhere").stdout
    assert "echo 'page: /elsewhere/exbert/quick/report.html'" in told


def test_every_variable_that_make_tells_of_is_known():
    told = set(re.findall(r"([A-Z_]+)=", make("help").stdout))
    assert {"HOLD", "DATA", "DOMAIN_A"} <= told
    assert (
        make("-n", "profile", *[f"{name}=1" for name in told - {"PROFILE", "VENV"}]).returncode == 0
    )


def test_help_lists_every_target():
    database = make("-npq", "VENV=", "help").stdout
    phony = set(re.search(r"^\.PHONY: (.*)$", database, re.M)[1].split()) - {
        "FORCE",
        "environment",
        "browser",
        "own-defined",
    }
    listed = {line.split()[0] for line in make("help").stdout.splitlines() if line.startswith("  ")}
    assert {"reproduce-exbert", "test"} <= phony <= listed


@pytest.mark.parametrize("profile", ["quick", "real", "paper"])
def test_the_recipe_reads_as_study_then_page(profile):
    told = make(
        "-n",
        "reproduce-exbert",
        "VENV=",
        f"PROFILE={profile}",
        "DATA=a b",
        "PARAMS=seeds=[0,1] epochs=1",
    )
    study, page = [x for x in told.stdout.splitlines() if "qa_lib" in x]
    flags = f"exbert --profile {profile} --data='a b' --params='seeds=[0,1] epochs=1'"
    assert study == f"python -m qa_lib study {flags}"
    assert page == f"python -m qa_lib render {flags}"
    assert told.stdout.startswith(f"echo 'profile {profile}: ")


def test_one_figure_alone():
    told = make("-n", "figures/exbert/real/fig3_ratios.png", "VENV=").stdout
    assert "qa_lib render exbert --profile real --only fig3_ratios" in told
    assert told.count("qa_lib render") == 1


def test_every_file_on_a_page_can_be_made_alone():
    for file in (ROOT / "figures").glob("*/real/*.*"):
        drawn = file.stem.startswith(("table", "fig"))
        told = make("-n", str(file.relative_to(ROOT)), "VENV=")
        assert (told.returncode == 0) == (drawn or file.name in ("report.html", "results.csv")), (
            file.name
        )


@pytest.mark.parametrize(
    "args, says",
    [
        (["reproduce-exbert", "PROFILE=quik"], "quik"),
        (["-B", ".venv/.installed", "PYTHON=false"], "Python 3.11 or newer"),
        (["reproduce-exbert", "VENV=nowhere"], "nowhere/bin/python' lacks"),
        (["check-data", "VENV="], "DATA="),
        (["-n", "reproduce-exbert", "seeds=[0]"], 'PARAMS="seeds=…"'),
        (["-n", "reproduce-exbert", "profile=real"], "profile= is no variable"),
        (["-n", "train-exbert", "YES=no"], "1 or 0, not no"),
        (["profile", "PROFILE=quick real"], "PROFILE=quick real is not a profile"),
        (["profile", "PROFILE=%"], "PROFILE=% is not a profile"),
        (["profile", "PROFILE=$(HOME)"], "PROFILE=$(HOME) is not a profile"),
        (["profile", "DATA=a\nb"], "DATA= holds a line break"),
        (["own", "NAME=a b"], "NAME=a b: a name is letters"),
        (["own", "NAME=$x:%"], "NAME=$x:%: a name is letters"),
        (["own", "NAME="], "NAME=: a name is letters"),
        (
            ["figures/exbert/real/fig9_none.png"],
            "fig9_none.png is no file of the study: write figures/<report>/<profile>/<file>",
        ),
        (["figures/exbert/real/fig3_ratios.csv"], "figures (png, svg): fig1_model"),
        (["figures/exbert/quik/fig3_ratios.png"], "profiles: quick real paper"),
        (["figures/exbrt/real/fig3_ratios.png"], "reports: moe exbert"),
        (["figures/x'y"], "figures/x'y is no file"),
    ],
)
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
        assert licence, row
        assert change, row
        assert re.search(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}:", source), row


def test_every_folder_dataset_is_in_the_data_table():
    table = (ROOT / "DATA.md").read_text()
    folder = yaml.safe_load((ROOT / "params" / "datasets.yaml").read_text())["folder"]
    for file in [f for d in folder.values() for f in d.get("train", []) + d.get("test", [])]:
        assert f"| `{file}` |" in table
