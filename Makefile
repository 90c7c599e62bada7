# Make decides what to render; the run store (qa_lib/store/runs.py) decides what to train.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDEXPANSION:
.NOTPARALLEL:
# WORKERS=n is the parallelism, not make -j.

REPORTS  := moe exbert road smart
PROFILES := quick real paper

# What a user may give. The programs read those of QA_ and RAY_ from the environment themselves.
GIVEN := PROFILE SIZE DATA PARAMS WORKERS FRESH STALE YES VENV PYTHON TORCH_INDEX NAME DOMAIN_A DOMAIN_B
OUTER := QA_RUNS QA_RECORDS QA_FIGURES QA_COMMIT RAY_ADDRESS

# A variable that is none of these would be passed over without a word.
KNOWN := $(GIVEN) $(OUTER) HOLD PY SETUP
STRAY := $(filter-out $(KNOWN),$(foreach v,$(.VARIABLES),$(if $(filter command,$(origin $v)),$v)))
ifneq ($(STRAY),)
  $(error $(firstword $(STRAY))= is no variable of make here (make help lists them); a parameter of the study is written PARAMS="$(firstword $(STRAY))=…", a variable of the environment before the word make)
endif

# `make own` would pass over these: its profile and its data are its own.
UNREAD := $(strip $(if $(filter own own-defined,$(MAKECMDGOALS)),$(foreach v,PROFILE DATA,$(if $(filter command,$(origin $v)),$v))))
ifneq ($(UNREAD),)
  $(error make own takes no $(firstword $(UNREAD))=: its data are DOMAIN_A= and DOMAIN_B=, and SIZE= and PARAMS= say how they are trained on)
endif

# A value reaches the programs as it was typed: a $ in it begins no variable of make. A recipe's line cannot hold a line break.
define newline


endef
broken = $(if $(findstring $(newline),$($1)),$(error $1= holds a line break; give it a value of one line))
typed  = $(eval override $1 := $$(value $1))$(eval export $1)$(call broken,$1)
$(foreach v,$(GIVEN) $(OUTER),$(if $(filter undefined,$(origin $v)),,$(call typed,$v)))
# One that was not given is empty. VENV is the exception: empty, it means the active environment.
$(foreach v,$(filter-out VENV,$(GIVEN) $(OUTER)),$(if $(filter undefined,$(origin $v)),$(eval $v :=)))

# A value as one word of a recipe's line, and a program or a path, whose ~/ the shell looks up.
quoted  = '$(subst ','\'',$1)'
program = $(subst '~/,~/',$(call quoted,$1))

ifneq ($(filter-out 0 1,$(FRESH) $(YES)),)
  $(error FRESH= and YES= are 1 or 0, not $(filter-out 0 1,$(FRESH) $(YES)))
endif

# This file as make was told of it; its path may hold blanks, and stands behind that of a file that includes it.
TOLD := $(subst ^^,,$(subst ^^ ,^^,^^$(value MAKEFILE_LIST)))
ifneq ($(filter-out help,$(or $(MAKECMDGOALS),help)),)
  ifeq ($(wildcard qa_lib/__main__.py),)
    $(error make was started outside the folder of the study; cd to the folder of $(TOLD) first, or name it: make -C folder …)
  endif
endif

# Profile: paper with a CUDA device, quick without. PROFILE= overrides.
override PROFILE := $(strip $(PROFILE))
ifneq ($(PROFILE),)
  WHY := PROFILE=$(PROFILE)
else ifneq ($(shell nvidia-smi -L 2>/dev/null),)
  override PROFILE := paper
  WHY := CUDA device found; PROFILE=quick or PROFILE=real DATA=… override
else
  override PROFILE := quick
  WHY := no CUDA device found; PROFILE=real DATA=… or PROFILE=paper override
endif
ifneq ($(words $(PROFILE)) $(filter $(PROFILES),$(PROFILE)),1 $(PROFILE))
  $(error PROFILE=$(PROFILE) is not a profile; known: $(PROFILES))
endif

# Environment: .venv, made from the lock. VENV= is the active one instead, VENV=path the one there.
ifeq ($(PYTHON),)
  override PYTHON := python3
endif
# Where this checkout was copied or moved, .venv would run the code of the folder that it was made in. .installed names that.
# A link to the .venv of another checkout stays as it is, whatever is newer here.
ifeq ($(origin VENV),undefined)
  MOVED := $(shell [ ! -e .venv/.installed ] || pwd -P | cmp -s - .venv/.installed || echo moved)
  SETUP := $(if $(shell [ -L .venv ] && echo linked),environment,.venv/.installed $(MOVED))
  PY    := .venv/bin/python
else
  SETUP := environment
  PY    := $(if $(VENV),$(call program,$(VENV)/bin/python),python)
endif

# figures/<slug>/<profile>/<file>: the path says which report and which profile.
# The rule for NAME is that of qa_lib/own_data/own.py, asked here since it is part of a path that make builds.
ifneq ($(filter own own-defined,$(MAKECMDGOALS)),)
  ifeq ($(shell printf '%s\n' $(call quoted,$(NAME)) | LC_ALL=C grep -xE '[A-Za-z0-9][A-Za-z0-9_-]{0,39}'),)
    $(error NAME=$(NAME): a name is letters, digits, - and _, at most 40 of them: make own NAME=mine DOMAIN_A=train.jsonl:test.jsonl DOMAIN_B=train.jsonl:test.jsonl)
  endif
endif

# Own data have a folder by their name; at other targets NAME may be a variable of the environment that means something else.
OWN     := figures/exbert/own-$(if $(filter own,$(MAKECMDGOALS)),$(NAME),NAME)
FOLDERS := $(foreach r,$(REPORTS),$(PROFILES:%=figures/$r/%)) $(OWN)
# The page about all reports: that of real data is figures/index.html.
index    = figures/index$(if $(filter real,$1),,-$1).html
INDEXES := $(foreach p,$(PROFILES),$(call index,$p))
slug     = $(word 2,$(subst /, ,$@))
profile  = $(or $(word 3,$(subst /, ,$@)),$(PROFILE))
# Where a figures/… path lies: QA_FIGURES=folder puts it elsewhere. Make looks at figures/ alone, so it is then drawn at every start.
place    = $(if $(QA_FIGURES),$(QA_FIGURES)/$(patsubst figures/%,%,$1),$1)
there    = $(call program,$(call place,$1))
ALWAYS  := $(if $(QA_FIGURES),FORCE)
option   = $(if $2, --$1=$(call quoted,$2))
FLAGS    = --profile $(profile)$(call option,size,$(SIZE))$(call option,data,$(DATA))$(call option,params,$(PARAMS))$(call option,stale,$(STALE))
TRAINING = $(FLAGS)$(call option,workers,$(WORKERS))$(if $(filter-out 0,$(FRESH)), --fresh)$(if $(filter-out 0,$(YES)), --yes)
# What a page shows: its notebook, its parameters, the library's own code.
inputs   = $(wildcard notebooks/*_$(slug).ipynb $(if $(filter own-%,$(profile)),notebooks/*_own.ipynb) params/*.yaml params/*/$(slug).yaml params/findings/$(slug).md) \
           $(wildcard qa_lib/*.py qa_lib/*/*.py qa_lib/*/*.yaml qa_lib/page/*)

# A table or figure that the report's notebook does not draw is refused before the study starts.
names   = $(shell grep -ohE '"(table|fig)[0-9A-Za-z_]*"' notebooks/*_$(call quoted,$1).ipynb 2>/dev/null | tr -d '"' | sort -u)
files   = $(foreach n,$(names),$(if $(filter table%,$n),$n.csv $n.md $n.tex,$n.png $n.svg)) report.html results.csv
known   = $(filter $(foreach d,$(filter figures/$1/%,$(FOLDERS)),$(addprefix $d/,$(files))),$2)
refuse  = $(error $2 is no file of the study: write figures/<report>/<profile>/<file>; reports: $(REPORTS); profiles: $(PROFILES)$(if $(names),; tables (csv, md, tex) and figures (png, svg): $(names)))
PAGES  := $(filter-out $(INDEXES),$(filter figures/%,$(MAKECMDGOALS)))
# All of these are written whole or not at all. So make removes none where a recipe fails, or at Ctrl-C.
.PRECIOUS: $(FOLDERS:%=%/results.csv) $(FOLDERS:%=%/report.html) $(INDEXES) $(PAGES)
$(foreach f,$(PAGES),$(foreach r,$(word 2,$(subst /, ,$f)),$(if $(call known,$r,$f),,$(call refuse,$r,$f))))

.PHONY: FORCE environment moved browser own-defined $(foreach t,reproduce train report land,$(REPORTS:%=$t-%)) \
        help profile reproduce overview site own readme verify power test test-slow test-notebooks test-browser bench lint data check-data pin lab lock clean

# Of a reader that has seen enough, as head does, nothing is said.
enough = || [ $$? -eq 141 ]

help: ## this list (the default)
	@{ echo 'make TARGET [PROFILE=quick|real|paper] [SIZE=small|full] [DATA=folder] [PARAMS="key=value …"]'; \
	   echo '            [WORKERS=n] [FRESH=1] [STALE=train|keep] [YES=1] [VENV=path] [PYTHON=python3.12]'; \
	   echo '            [TORCH_INDEX=url] [QA_RUNS=folder] [QA_RECORDS=folder] [QA_FIGURES=folder]'; \
	   echo '            [QA_COMMIT=commit] [RAY_ADDRESS=host:port]'; \
	   file=$(call quoted,$(TOLD)); [ -e "$$file" ] || file=$(call quoted,$(lastword $(value MAKEFILE_LIST))); \
	   { for r in $(REPORTS); do sed -n "s/^[$$](REPORTS:%=\(.*-\)%).*## /\1$$r|/p" "$$file"; done; \
	     sed -n 's/^\([a-z-]*\):.*## /\1|/p' "$$file"; } | awk -F'|' '{ printf "  %-18s %s\n", $$1, $$2 }'; \
	   echo '  STALE=train trains the runs again whose record other code made, as after an edit of a model,'; \
	   echo '  STALE=keep keeps the records and says so; without it quick trains, real, paper and own keep'; \
	   echo '  figures/<report>/<profile>/<file>: that page, table or figure alone'; \
	   echo '  QA_RUNS, QA_RECORDS, QA_FIGURES: the folder in the place of runs/, records/, figures/;'; \
	   echo '  QA_COMMIT: the commit that records name where git tells none'; \
	   echo "a value with a blank stands in quotes: DATA='my data' PARAMS='\"encoder=my model\" epochs=2'"; \
	} | cat $(enough)

profile: ## print the profile in use, and why
	@echo 'profile $(PROFILE): $(WHY)'

# ---- train, collect, report ----

reproduce: $(REPORTS:%=reproduce-%) $(call index,$(PROFILE)) ## every report, then the page about all of them
	@echo $(call quoted,page: $(call place,$(lastword $^)))

overview: profile | $(SETUP) ## draw the page about all reports from the pages there are
	$(PY) -m qa_lib overview --profile $(PROFILE)

site: | $(SETUP) ## the pages of real data and their overview, in site/, for any host of static files
	$(PY) -m qa_lib overview --profile real
	@rm -rf site && mkdir -p site/overview
	@cp $(call there,figures/index.html) site/
	@cp -r $(call there,figures/overview/real) site/overview/
	@for page in $(foreach r,$(REPORTS),$(call there,figures/$r/real)); do \
	   [ -d "$$page" ] || continue; \
	   to=site/$$(basename "$$(dirname "$$page")"); mkdir -p "$$to"; cp -r "$$page" "$$to/"; done
	@echo 'page: site/index.html'

$(REPORTS:%=reproduce-%): reproduce-%: profile figures/%/$(PROFILE)/report.html ## train what is missing, then render the page
	@echo $(call quoted,page: $(call place,$(word 2,$^)))

$(REPORTS:%=train-%): train-%: profile figures/%/$(PROFILE)/results.csv ## train what is missing

$(REPORTS:%=report-%): report-%: profile | $(SETUP) ## render the page alone
	$(PY) -m qa_lib render $* $(FLAGS)

$(REPORTS:%=land-%): land-%: profile | $(SETUP) ## put completed runs of profile real or paper into records/
	$(PY) -m qa_lib land $* $(FLAGS)

readme: | $(SETUP) ## write what was found on real data into README.md and docs/
	$(PY) -m qa_lib overview --readme

verify: profile | $(SETUP) ## print the verdict on every claim, from records alone; fails where results.csv disagrees
	@for r in $(REPORTS); do $(PY) -m qa_lib verify $$r $(FLAGS) $(enough); done

# The study looks at every run at each start, and touches results.csv only if a number changed.
$(FOLDERS:%=%/results.csv): $(SETUP) FORCE
	$(PY) -m qa_lib study $(slug) $(TRAINING)

$(FOLDERS:%=%/report.html): %/report.html: %/results.csv $$(inputs) $(ALWAYS)
	$(PY) -m qa_lib render $(slug) $(FLAGS)
	@touch -c -- $(call there,$@)

$(foreach p,$(PROFILES),$(eval $(call index,$p): $(REPORTS:%=figures/%/$p/report.html)))
$(INDEXES): notebooks/00_overview.ipynb params/findings/overview.md $(ALWAYS)
	$(PY) -m qa_lib overview --profile $(or $(patsubst figures/index-%.html,%,$(filter figures/index-%,$@)),real)

figures/%: $$(@D)/results.csv $$(inputs) $(ALWAYS)
	$(PY) -m qa_lib render $(slug) $(FLAGS) --only $(basename $(@F))
	@[ -e $(call there,$@) ] && touch -c -- $(call there,$@) || { echo 'error: $(@F) is not drawn: its part of the study is not run at this profile and size' >&2; exit 2; }

power: | $(SETUP) ## print what the reports' runs could see, and which claims more seeds could decide
	@$(PY) -m qa_lib power $(enough)

# ---- own data ----

# The page stands in figures/exbert/own-NAME, the definition of its two domains, which names the files, beside the runs.
own: profile = own
own: override DATA = $(or $(QA_RUNS),runs)/own/$(NAME).yaml
own: override PARAMS := domains=[$(NAME)-a,$(NAME)-b]$(if $(PARAMS), $(PARAMS))
own: own-defined $(OWN)/report.html ## is ExBERT's block worth it on your data? NAME=mine DOMAIN_A=train.jsonl:test.jsonl DOMAIN_B=train.jsonl:test.jsonl
	@$(PY) -m qa_lib verify exbert $(FLAGS)
	@echo $(call quoted,page: $(call place,$(word 2,$^)))

own-defined: | $(SETUP)
	@$(PY) -m qa_lib own$(call option,size,$(SIZE))$(call option,params,$(PARAMS)) -- $(foreach x,NAME DOMAIN_A DOMAIN_B,$(call quoted,$($x)))

# ---- set-up ----

# Of two starts at once, the second waits for the first one's pip.
WAIT := $(if $(shell command -v flock),flock .venv)

# The lock has setuptools, so that this needs no network.
INSTALL = $(WAIT) $(PY) -m pip install -q --no-deps --no-build-isolation -e . && pwd -P >.venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	@$(if $(shell $(call program,$(PYTHON)) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),,\
	$(error Python 3.11 or newer is needed and $(PYTHON) is not; name one with make PYTHON=python3.12))
	$(call program,$(PYTHON)) -m venv .venv
	$(if $(TORCH_INDEX),$(WAIT) $(PY) -m pip install -q --no-deps --index-url=$(call quoted,$(TORCH_INDEX)) $(torch))
	$(WAIT) $(PY) -m pip install -q -r requirements.lock
	$(INSTALL)

moved: .venv/.installed
	$(INSTALL)

environment:
	@$(if $(shell $(PY) -c 'from importlib.util import find_spec as f; print(f("torch") and f("papermill") or "")' 2>/dev/null),,\
	$(error $(PY) lacks the packages of requirements.lock; activate an environment that has them, or leave VENV= away))

# ---- tests, data, upkeep ----

test: | $(SETUP) ## the fast tests
	HF_HUB_OFFLINE=1 $(PY) -m pytest -n 2 --dist worksteal -m 'not slow'

# The others that are slow have targets of their own.
test-slow: | $(SETUP) ## the tests that take longer: runs of every kind, killed and resumed; DATA=folder adds those on real data
	HF_HUB_OFFLINE=1 $(PY) -m pytest -n 2 -m slow --ignore=tests/test_browser.py --ignore=tests/test_lab.py --ignore=tests/test_notebooks.py

test-notebooks: | $(SETUP) ## Run All on the untouched notebooks
	HF_HUB_OFFLINE=1 $(PY) -m pytest tests/test_notebooks.py

# What these need beside Python: Chromium, and axe-core, pinned here and kept in .cache/.
AXE := 4.13.0
AXE_FILE := .cache/node/axe-core-$(AXE)/node_modules/axe-core/axe.min.js

test-browser: $(AXE_FILE) | $(SETUP) browser ## open the rendered pages, and a notebook in JupyterLab, in headless Chromium
	$(PY) -m pytest tests/test_browser.py tests/test_lab.py

browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	{ echo 'no Chromium on the path: asking apt-get for it'; apt-get install -qq -y chromium >/dev/null 2>&1; } || \
	{ echo 'error: test-browser needs Chromium; install the package chromium (as root), or Google Chrome, and start again' >&2; exit 2; }

$(AXE_FILE):
	@command -v npm >/dev/null || { echo 'error: test-browser needs npm to fetch axe-core; install the package npm' >&2; exit 2; }
	npm install --no-save --ignore-scripts --silent --prefix .cache/node/axe-core-$(AXE) axe-core@$(AXE)

bench: | $(SETUP) ## measure what is claimed to be fast, beside what it replaces
	@for f in tests/benchmarks/[a-z]*.py; do echo "== $$f"; $(PY) $$f; done

lint: | $(SETUP) ## ruff, and notebooks without outputs
	$(PY) -m ruff check .
	$(PY) -m nbstripout --verify --keep-id notebooks/*.ipynb

data: profile | $(SETUP) ## fetch and verify what the profile needs, to run offline afterwards
	@for r in $(REPORTS); do $(PY) -m qa_lib study $$r $(FLAGS) --fetch; done

check-data: | $(SETUP) ## compare the files in DATA= with DATA.md
	@$(if $(DATA),,$(error check-data needs DATA=folder, the one that holds qa/ and nlu/))
	$(PY) -m qa_lib check-data$(call option,data,$(DATA)) $(enough)

pin: | $(SETUP) ## resolve hub revisions into params/pins.yaml
	$(PY) -m qa_lib pin

lab: | $(SETUP) ## open JupyterLab
	$(PY) -m jupyterlab

# CPU and CUDA builds of torch share the pin; pip finds the CUDA libraries that a build asks for.
HOLD  = $(shell grep '^torch==' requirements.lock)
torch = $(foreach h,$(HOLD),$(call quoted,$h))
lock: | $(SETUP) ## pin what pyproject.toml asks for (torch stays; HOLD=torch==x.y.z moves it)
	@{ echo '# Exact versions of what pyproject.toml asks for, tests included. Made by `make lock`; not edited.'; \
	   $(PY) -m pip install --dry-run --ignore-installed -e '.[test]' $(torch) | sed -n 's/^Would install //p' | tr ' ' '\n' | \
	   sed -E 's/\+.*//; s/-([^-]+)$$/==\1/' | grep -vE '^(qa-study|nvidia-|cuda-|triton)' | sort -f; } >requirements.new
	mv requirements.new requirements.lock

clean: ## remove quick pages and caches; never runs/
	rm -rf -- $(call there,figures/)*/quick $(call there,figures/index-quick.html) .cache .pytest_cache .ruff_cache
