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
import venv
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

from qa_lib.__main__ import VERBS, make_parser, run_verb
from qa_lib.settings import params

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
    "losses": {"settings", "tasks"},
    "models": {"settings", "tasks", "losses"},
    "store": {"settings"},
    "data": {"settings", "tasks", "store"},
    "training": {"settings", "tasks", "losses", "models", "store", "data"},
    "reports": {"settings", "tasks", "data", "store"},
    "evidence": {"settings", "tasks", "data", "store", "reports"},
    "own_data": {"settings", "tasks", "data", "store", "reports", "evidence"},
    "page": {"settings", "tasks", "data", "store", "reports", "evidence", "own_data"},
}
# Heavy, and looked for only where something is trained, tokenised or read from a hub.
HEAVY = {"torch", "transformers", "datasets", "evaluate"}
# In these rooms no module imports them at its top. The metrics do: their classes derive from one
# of `evaluate`.
LIGHT = ("settings", "tasks", "data", "store", "reports", "evidence", "own_data", "page")
METRICS = ("tasks/span_score.py", "tasks/sentence_score.py", "tasks/local_metric.py")

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
# Imported only if RAY_ADDRESS is set; then one sentence says so if it is not installed.
EXTRA = {"ray"}


@cache
def imports(module: str) -> frozenset[tuple[str, bool]]:
    """Return a module's imports, each as (name, whether it stands at the top of the module).

    `from qa_lib.x import y` counts as qa_lib.x.
    """
    tree = ast.parse(LIBRARY[module].read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            names |= {(a.name, top) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"qa_lib/{module}: relative import"
            names.add((node.module, top))
    return frozenset(names)


def room_of(module: str) -> str:
    """Return the room of a module, or an empty string for a module outside the rooms."""
    return module.split("/")[0] if "/" in module else ""


def imported_rooms(module: str) -> set[str]:
    """Return the rooms that a module imports from."""
    names = {name for name, _ in imports(module) if name.startswith("qa_lib.")}
    return {name.split(".")[1] for name in names}


def third_party_packages(module: str) -> set[str]:
    """Return the packages that a module imports, without qa_lib and the standard library."""
    names = {name.split(".")[0] for name, _ in imports(module)}
    return names - sys.stdlib_module_names - {"qa_lib"}


@pytest.mark.parametrize("module", LIBRARY)
def test_imports_run_one_way(module):
    room = room_of(module)
    if room:
        assert imported_rooms(module) <= ROOMS[room] | {room}
    else:
        # the command line hands one room's lists to another
        assert module in ("__init__.py", "__main__.py")


@pytest.mark.parametrize("module", [m for m in LIBRARY if room_of(m) in LIGHT and m not in METRICS])
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


def test_every_argument_of_every_verb_is_explained():
    (verbs,) = make_parser()._subparsers._group_actions
    for name, parser in verbs.choices.items():
        assert parser.description.endswith("."), name
        for argument in parser._actions:
            assert argument.help, f"{name}: {argument.dest}"


def test_help_says_what_profiles_and_gpus_change():
    (verbs,) = make_parser()._subparsers._group_actions
    texts = {}
    for name, parser in verbs.choices.items():
        texts[name] = " ".join(parser.format_help().split())
    assert "by default one on each GPU" in texts["study"]
    assert "profiles real and paper" in texts["land"]
    for name in ("study", "land", "overview"):
        assert "by default paper with a CUDA GPU, else quick" in texts[name]


def test_every_import_is_a_declared_dependency():
    declared = {canonical(Requirement(r).name) for r in PROJECT["dependencies"]}
    wheels = metadata.packages_distributions()
    for module in LIBRARY:
        for name in third_party_packages(module) - EXTRA:
            assert {canonical(d) for d in wheels[name]} & declared, f"{name}, in qa_lib/{module}"


def test_training_imports_only_what_a_bare_machine_gets():
    rooms = {"training", "reports"} | ROOMS["training"] | ROOMS["reports"]
    for module in LIBRARY:
        if room_of(module) in rooms or module == "__main__.py":
            assert third_party_packages(module) <= IMAGE | CARRIED | EXTRA, f"qa_lib/{module}"
    assert EXTRA <= set(PROJECT["optional-dependencies"])


def test_the_tree_of_the_code_is_whole():
    """docs/code.md has a line for each module, under its room."""
    text = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    room = ""
    modules = []
    for line in text.splitlines():
        room_line = re.match(r"  (\w+)/  ", line)
        module_line = re.match(r"    (\w+\.py)  +\S", line)
        if room_line:
            room = room_line[1]
        elif module_line:
            modules.append(f"{room}/{module_line[1]}")
    expected = [m for m in LIBRARY if not m.endswith("__init__.py") and m != "__main__.py"]
    assert sorted(modules) == sorted(expected)
    assert set(ROOMS) == {room_of(m) for m in modules}


UNSAFE = (
    r"(?:import|from) (?:pickle|dill|joblib)\b|torch\.load\(|trust_remote_code ?= ?True"
    r"|allow_pickle ?= ?True|yaml\.(?:unsafe_|full_)?load\("
)


@pytest.mark.parametrize("file", [*LIBRARY.values(), *NOTEBOOKS], ids=lambda p: p.name)
def test_nothing_unsafe_is_loaded(file):
    assert not re.findall(UNSAFE, file.read_text())


def lacks_encoding(call: ast.Call) -> bool:
    """Return whether a call reads or writes text in the encoding of the locale."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    arguments = {keyword.arg for keyword in call.keywords}
    if "encoding" in arguments:
        return False
    # gzip.open, Image.open and os.open open bytes
    if name == "open" and owner not in ("gzip", "Image", "os"):
        modes = {arg.value for arg in call.args if isinstance(arg, ast.Constant)}
        return not modes & {"rb", "wb"}
    if name in ("run", "Popen"):
        return "text" in arguments
    return name in ("read_text", "write_text")


def read_sources(file: Path) -> list[str]:
    """Return the text of a module, or that of each code cell of a notebook."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".ipynb":
        return [text]
    cells = json.loads(text)["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def test_text_has_its_encoding():
    """Without one a locale that is not UTF-8 reads other letters, or none."""
    places = []
    for file in [*LIBRARY.values(), *NOTEBOOKS]:
        for source in read_sources(file):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Call) and lacks_encoding(node):
                    places.append(f"{file.name}, line {node.lineno}")
    assert places == []


def test_git_keeps_line_ends():
    """They stay whatever core.autocrlf says, because claims and rules are known by their sha256."""
    files = [
        "params/claims/FROZEN",
        "qa_lib/evidence/claims.py",
        "records/moe/examples-000.parquet",
        "figures/moe/real/fig_comparisons.png",
    ]
    command = ["git", "check-attr", "text", "eol", "--", *files]
    attributes = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    if not attributes:
        pytest.skip("not a checkout of git")
    assert "FROZEN: eol: lf" in attributes
    assert "claims.py: eol: lf" in attributes
    assert "parquet: text: unset" in attributes
    assert "png: text: unset" in attributes


def test_the_tracked_files_stay_small():
    """Everyone who clones the study fetches its records and pages."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if not listed.stdout:
        pytest.skip("not a checkout of git")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert sum(file.stat().st_size for file in files if file.exists()) < 18e6


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_stripped(file):
    notebook = json.loads(file.read_text())
    assert "papermill" not in notebook["metadata"]
    assert not [c for c in notebook["cells"] if c.get("outputs") or c.get("execution_count")]


# ---- dependencies ----

# What belongs to a build of torch.
LEFT_OPEN = ("nvidia-", "cuda-", "triton")


def read_pins() -> dict[str, str]:
    """Return the version of each package in requirements.lock, by its canonical name."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    lines = [x for x in lines if not x.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), "name==version alone"
    pins = {canonical(x.split("==")[0]): x.split("==")[1] for x in lines}
    assert len(pins) == len(lines)
    return pins


def test_the_lock_pins_what_pyproject_asks_for():
    pins = read_pins()
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    for requirement in map(Requirement, wanted):
        version = pins[canonical(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: run make lock"


def test_the_lock_leaves_the_build_of_torch_open():
    assert not [n for n in read_pins() if n.startswith((*LEFT_OPEN, "qa-study"))]


def test_the_lock_has_all_that_its_packages_ask_for():
    """In a new environment pip finds nothing to choose and nothing that contradicts."""
    pins = read_pins()
    asked = list(map(Requirement, PROJECT["dependencies"]))
    asked += map(Requirement, PROJECT["optional-dependencies"]["test"])
    known = set()
    while asked:
        requirement = asked.pop()
        name = canonical(requirement.name)
        if name.startswith(LEFT_OPEN):
            continue
        assert requirement.specifier.contains(pins[name], prereleases=True), requirement
        if (name, *requirement.extras) in known:
            continue
        known.add((name, *requirement.extras))
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            extras = {"", *requirement.extras}
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in extras):
                asked.append(needed)


# It takes one or two where the index is near: pip fetches some wheels to read what they ask for.
PIP_MINUTES = 15


@pytest.mark.slow
def test_pip_resolves_the_environment_of_conda(tmp_path):
    """In a new environment pip finds every pinned version, and versions that fit each other.

    Proven is that the pip part of environment.yml can be installed. Nothing is installed, and conda
    itself is not asked. Needs the network: pip asks its index for every package.
    """
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    venv.create(tmp_path / "new", with_pip=True)
    words = [word for line in pip["pip"] for word in line.split()]
    command = [tmp_path / "new" / "bin" / "python", "-m", "pip", "install", "--dry-run", *words]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60 * PIP_MINUTES
        )
    except subprocess.TimeoutExpired:
        pytest.fail(
            f"pip did not resolve environment.yml in {PIP_MINUTES} minutes: its index is slow, or "
            "lacks a version of requirements.lock so that pip tries others",
            pytrace=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    would = done.stdout.splitlines()[-1]
    assert would.startswith("Would install")
    for name, version in read_pins().items():
        assert re.search(rf"(?i){re.sub('[-_.]+', '[-_.]', name)}-{re.escape(version)}", would), (
            name
        )


def test_conda_uses_the_lock():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert {"make", "git", "pip"} < set(conda)
    python = next(x for x in conda if x.startswith("python="))
    assert PROJECT["requires-python"] == ">=" + python.removeprefix("python=")


# ---- Makefile ----


def make(*args: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Run make in a folder, with more variables in the environment.

    This Python comes first on the path. Nothing is inherited from an outer make.
    """
    ours = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PROFILE", "VENV"}
    env = {k: v for k, v in os.environ.items() if k not in ours}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return subprocess.run(
        ["make", *args], cwd=folder, env=env | variables, capture_output=True, text=True
    )


# A shell or make reads these as something else than letters, inside a value or at its start.
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
    """Return an environment whose Python notes what it was started with, and a function.

    The environment is a folder with an odd name. The function runs make with it and returns a
    list for each start of Python: arguments, QA_RUNS and QA_FIGURES.
    """
    folder = tmp_path / "my $env é"
    program = folder / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-c":
    # make asks whether the packages are there
    print(True)
else:
    start = [sys.argv[2:], os.environ.get("QA_RUNS"), os.environ.get("QA_FIGURES")]
    with open(os.environ["STARTS"], "a") as file:
        file.write(json.dumps(start) + "\\n")
""")
    program.chmod(0o755)

    def starts(*args: str, **variables: str) -> list[list]:
        file = tmp_path / "starts"
        file.write_text("")
        done = make(*args, f"VENV={folder}", STARTS=str(file), **variables)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
        return [json.loads(line) for line in file.read_text().splitlines()]

    return folder, starts


def test_a_switch_of_0_is_off():
    recipe = ["-n", "train-exbert", "VENV=", "PROFILE=quick"]
    off = make(*recipe, "FRESH=0", "YES=0").stdout
    assert "--fresh" not in off
    assert "--yes" not in off
    assert "--fresh --yes" in make(*recipe, "FRESH=1", "YES=1").stdout


def test_a_quoted_value_reaches_the_program():
    recipe = make("-n", "train-exbert", "VENV=", "PROFILE=real", "DATA=/o'brien/x y").stdout
    assert shlex.split(recipe.splitlines()[-1])[-1] == "--data=/o'brien/x y"


@pytest.mark.parametrize("text", ODD)
def test_a_value_reaches_the_program_as_it_was_typed(python, text):
    _, starts = python
    values = {name: text for name in ("DATA", "PARAMS", "SIZE", "WORKERS")}
    flags = [f"--{name.lower()}={text}" for name in ("SIZE", "DATA", "PARAMS", "WORKERS")]
    expected = ["qa_lib", "study", "exbert", "--profile", "quick", *flags]
    line = [f"{name}={value}" for name, value in values.items()]
    [typed] = starts(
        "train-exbert", "PROFILE=quick", *line, f"QA_RUNS={text}", f"QA_FIGURES={text}"
    )
    [exported] = starts("train-exbert", PROFILE="quick", QA_RUNS=text, QA_FIGURES=text, **values)
    assert typed == exported == [expected, text, text]


@pytest.mark.parametrize("text", ODD)
def test_files_of_own_data_reach_the_program_as_they_were_typed(python, text):
    _, starts = python
    values = ["NAME=mine", f"DOMAIN_A={text}:c", f"DOMAIN_B={text}"]
    own, study, *_ = starts("own", *values, QA_RUNS=text)
    options = ["--params=domains=[mine-a,mine-b]", "--"]
    assert own[0] == ["qa_lib", "own", *options, "mine", f"{text}:c", text]
    assert f"--data={text}/own/mine.yaml" in study[0]


def test_the_path_of_python_may_hold_any_letters(python, tmp_path):
    """The recipes of the set-up name that path too. The shell expands a ~ in it."""
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


def copy_checkout(folder: Path) -> Path:
    """Copy into a folder what make looks at, and return the folder."""
    for part in ("qa_lib", "params", "notebooks"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", folder)
    return folder


@pytest.mark.parametrize("name", ["a b$c", "it's", "a#b", "größe", "(a;b&c)", "-x", "%a"])
def test_the_path_of_a_checkout_may_hold_any_letters(tmp_path, name):
    folder = copy_checkout(tmp_path / name)
    for args in (["profile"], ["-n", "reproduce", "VENV=", "PROFILE=real"], ["help"]):
        inside = make(*args, folder=folder)
        assert inside.returncode == 0
        assert inside.stdout == make(*args).stdout
        assert make(*args, folder=tmp_path).returncode == 2
    outside = make("-f", str(folder / "Makefile"), folder=tmp_path)
    assert outside.returncode == 0
    assert outside.stdout == make("help").stdout


def test_make_from_outside_is_one_sentence(tmp_path):
    done = make("-f", str(ROOT / "Makefile"), "profile", folder=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"cd to the folder of {ROOT}/Makefile first" in done.stderr
    inside = make("-s", "--no-print-directory", "-C", str(ROOT), "profile", folder=tmp_path)
    assert inside.stdout == make("profile").stdout


def test_another_makefile_may_include_this_one(tmp_path):
    (tmp_path / "other.mk").write_text(f"include {ROOT}/Makefile\n")
    done = make("-f", str(tmp_path / "other.mk"), "help", folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout == make("help").stdout


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


def test_help_is_silent_when_its_reader_leaves():
    command = ["bash", "-c", "make help | true"]
    assert not subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr


def test_figures_may_lie_elsewhere(python, tmp_path):
    """QA_FIGURES names the folder of the page, and make says so."""
    _, starts = python
    (tmp_path / "exbert" / "quick").mkdir(parents=True)
    (tmp_path / "exbert" / "quick" / "fig3_ratios.png").touch()
    programs = starts("figures/exbert/quick/fig3_ratios.png", QA_FIGURES=str(tmp_path))
    assert [start[0][1] for start in programs] == ["study", "render"]
    output = make(
        "-n", "reproduce-exbert", "VENV=", "PROFILE=quick", QA_FIGURES="/elsewhere"
    ).stdout
    assert "echo 'page: /elsewhere/exbert/quick/report.html'" in output


@pytest.mark.parametrize(
    "target", ["reproduce-exbert", "figures/exbert/quick/fig3_ratios.png", "reproduce"]
)
def test_what_lies_elsewhere_is_drawn_whatever_lies_here(python, tmp_path, target):
    """Make compares the times of files in figures/, which say nothing of another folder."""
    _, starts = python
    checkout = copy_checkout(tmp_path / "checkout")
    made = dict.fromkeys(checkout.rglob("*.*"), 1000)
    for folder in (checkout / "figures", checkout / "mine"):
        for slug in params.list_reports():
            made[folder / slug / "quick" / "results.csv"] = 2000
            made[folder / slug / "quick" / "report.html"] = 3000
        made[folder / "exbert" / "quick" / "fig3_ratios.png"] = 3000
        made[folder / "index-quick.html"] = 4000
    for file, seconds in made.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (seconds, seconds))
    here = starts(target, PROFILE="quick", folder=checkout)
    assert {start[0][1] for start in here} == {"study"}
    elsewhere = starts(target, PROFILE="quick", QA_FIGURES="mine", folder=checkout)
    drawn = {start[0][1] for start in elsewhere}
    assert drawn == {"study", "render"} | ({"overview"} if target == "reproduce" else set())
    page = checkout / "figures" / "exbert" / "quick" / "report.html"
    assert page.stat().st_mtime == made[page]


def test_what_was_written_whole_outlives_a_failure(tmp_path):
    checkout = copy_checkout(tmp_path / "checkout")
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    page = "figures/exbert/quick"
    (checkout / page).mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && echo True && exit\n'
        f"echo whole >{page}/results.csv\n[ $3 = study ] && exit\n"
        f"echo whole >{page}/report.html\nexit 1\n"
    )
    program.chmod(0o755)
    done = make("reproduce-exbert", "PROFILE=quick", f"VENV={tmp_path}", folder=checkout)
    assert done.returncode == 2
    for name in ("results.csv", "report.html"):
        assert (checkout / page / name).read_text() == "whole\n"


def test_a_copied_checkout_runs_its_own_code(tmp_path):
    """An environment runs the code of the folder that it was made in."""
    checkout = copy_checkout(tmp_path / "first one")
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    program = checkout / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@" >>starts\n')
    program.chmod(0o755)
    (checkout / ".venv" / ".installed").write_text(f"{checkout}\n")

    def list_starts(folder: Path) -> list[str]:
        (folder / "starts").unlink(missing_ok=True)
        assert make("power", folder=folder).returncode == 0
        return (folder / "starts").read_text().splitlines()

    study = "-m qa_lib power"
    install = "-m pip install -q --no-deps --no-build-isolation -e ."
    assert list_starts(checkout) == [study]
    copied = shutil.copytree(checkout, tmp_path / "second one")
    assert list_starts(copied) == [install, study]
    assert list_starts(copied) == [study]
    assert list_starts(checkout) == [study]
    moved = checkout.rename(tmp_path / "third one")
    assert list_starts(moved) == [install, study]


def test_a_linked_environment_is_not_installed_into(tmp_path):
    """It is another checkout's, whose packages stay, though this one's lock is newer."""
    checkout = copy_checkout(tmp_path / "checkout")
    other = tmp_path / "other" / ".venv"
    program = other / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\n[ "$1" = -c ] && echo True && exit\necho "$@" >>starts\n')
    program.chmod(0o755)
    (other / ".installed").write_text(f"{other.parent}\n")
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
        os.utime(checkout / name, (2e9, 2e9))
    (checkout / ".venv").symlink_to(other)
    assert make("power", folder=checkout).returncode == 0
    assert (checkout / "starts").read_text() == "-m qa_lib power\n"
    assert (other / ".installed").read_text() == f"{other.parent}\n"


def test_clean_removes_the_quick_pages_wherever_they_lie(tmp_path):
    checkout = copy_checkout(tmp_path / "checkout")
    for folder in ("figures", "my figures"):
        for name in ("exbert/quick/report.html", "exbert/real/report.html", "index-quick.html"):
            (checkout / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / folder / name).touch()
        left = [path for path in (checkout / folder).rglob("*.html")]
        assert len(left) == 3
        variables = [] if folder == "figures" else [f"QA_FIGURES={folder}"]
        assert make("clean", *variables, folder=checkout).returncode == 0
        left = [path.parent.name for path in (checkout / folder).rglob("*.html")]
        assert left == ["real"]


def test_every_variable_that_make_tells_of_is_known():
    names = set(re.findall(r"([A-Z_]+)=", make("help").stdout))
    assert {"HOLD", "DATA", "DOMAIN_A"} <= names
    assert {"QA_RUNS", "QA_RECORDS", "QA_FIGURES", "QA_COMMIT", "RAY_ADDRESS"} <= names
    settings = [f"{name}=1" for name in names - {"PROFILE", "VENV"}]
    assert make("-n", "profile", *settings).returncode == 0


def test_help_lists_every_target():
    database = make("-npq", "VENV=", "help").stdout
    phony = set(re.search(r"^\.PHONY: (.*)$", database, re.M)[1].split())
    # steps of other targets, not for people
    phony -= {"FORCE", "environment", "moved", "browser", "own-defined"}
    targets = {
        line.split()[0] for line in make("help").stdout.splitlines() if line.startswith("  ")
    }
    assert {"reproduce-exbert", "test"} <= phony <= targets


@pytest.mark.parametrize("slug", params.list_reports())
@pytest.mark.parametrize("profile", ["quick", "real", "paper"])
def test_the_recipe_reads_as_study_then_page(profile, slug):
    values = [f"PROFILE={profile}", "DATA=a b", "PARAMS=seeds=[0,1] epochs=1"]
    done = make("-n", f"reproduce-{slug}", "VENV=", *values)
    study, page = [x for x in done.stdout.splitlines() if "qa_lib" in x]
    flags = f"{slug} --profile {profile} --data='a b' --params='seeds=[0,1] epochs=1'"
    assert study == f"python -m qa_lib study {flags}"
    assert page == f"python -m qa_lib render {flags}"
    assert done.stdout.startswith(f"echo 'profile {profile}: ")


def test_one_figure_can_be_made_alone():
    output = make("-n", "figures/exbert/real/fig3_ratios.png", "VENV=").stdout
    assert "qa_lib render exbert --profile real --only fig3_ratios" in output
    assert output.count("qa_lib render") == 1


def test_every_file_on_a_page_can_be_made_alone():
    pages = [ROOT / "figures" / slug / "real" for slug in params.list_claimed_reports()]
    files = list(chain.from_iterable(page.glob("*.*") for page in pages))
    drawn, others = [], []
    for file in files:
        on_page = file.stem.startswith(("table", "fig"))
        on_page = on_page or file.name in ("report.html", "results.csv")
        (drawn if on_page else others).append(str(file.relative_to(ROOT)))
    done = make("-n", *drawn, "VENV=")
    assert done.returncode == 0, done.stderr
    for name in others:
        assert make("-n", name, "VENV=").returncode == 2, name


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
        (["own", "NAME=a", "DATA=b"], "make own takes no DATA=: its data are DOMAIN_A="),
        (["own", "NAME=a", "PROFILE=real"], "make own takes no PROFILE="),
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
    done = make(*args)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


# ---- DATA.md ----


def test_every_line_of_the_data_table_parses():
    rows = [x for x in (ROOT / "DATA.md").read_text().splitlines() if x.startswith("| `")]
    assert len(rows) > 40
    for row in rows:
        path, n, sha, licence, source, change = [c.strip() for c in row.strip("|").split("|")]
        assert re.fullmatch(r"`(qa|nlu)/\w+/\w+\.jsonl\.gz`", path), row
        assert int(n) > 0, row
        assert re.fullmatch(r"`[0-9a-f]{64}`", sha), row
        assert licence, row
        assert change, row
        assert re.search(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}:", source), row


def test_every_folder_dataset_is_in_the_data_table():
    table = (ROOT / "DATA.md").read_text()
    folder = yaml.safe_load((ROOT / "params" / "datasets.yaml").read_text())["folder"]
    for dataset in folder.values():
        for file in dataset.get("train", []) + dataset.get("test", []):
            assert f"| `{file}` |" in table
