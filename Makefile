# `make help` lists the targets. Everything is installed in .venv.

# The first supported interpreter that is found; `make env PYTHON=...` chooses another.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
	$(p) -c '$(SUPPORTED)' 2>/dev/null && echo $(p))))

UNSUPPORTED = resflow_bench runs on Python 3.11, 3.12 or 3.13; got "$(PYTHON)". \
	Install one of them, or name it: make env PYTHON=/path/to/python3.12

# An extra package index for torch. On Linux PyPI's wheels include 2 GB of CUDA, so a machine without
# an NVIDIA driver also uses PyTorch's CPU index, whose "+cpu" build pip ranks above PyPI's.
# `make env TORCH_INDEX=` uses PyPI alone.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)

BIN := .venv/bin
# The stamp's name contains a checksum of the folder, so that a copied clone makes its own .venv.
STAMP := .venv/.installed-$(firstword $(shell printf %s '$(CURDIR)' | cksum))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The preset of `make bench`, and the folders that it writes to.
PRESET ?= quick
RESULTS ?= results
REPORTS ?= reports

# Suites whose numbers do not depend on the machine's speed and whose smoke models need no training.
ACCURACY := bias variance inverse lipschitz launches path_gradient
BASELINE := results/baseline

.PHONY: help env test bench check docs asv asv-pair asv-history accuracy gate baseline weights clean
.DEFAULT_GOAL := help

help:
	@echo 'make env    create .venv with all dependencies, at the versions of constraints.txt'
	@echo 'make test   run the whole test suite'
	@echo 'make bench  run all suites; $(REPORTS)/index.html grows meanwhile (PRESET=smoke|quick|full)'
	@echo 'make check  run ruff, mypy and the checks of the workflows'
	@echo 'make docs   build the documentation in build/site; its links, references and mathematics are checked'
	@echo 'make asv    check the asv benchmarks and run each of them once'
	@echo 'make asv-pair BASE=main NEW=HEAD  build two commits and measure them in turn, for `gate`'
	@echo 'make asv-history  measure this commit and add it to reports/asv and build/history'
	@echo 'make gate   measure accuracy and compare it with $(BASELINE); fail if it is worse'
	@echo 'make baseline  measure accuracy, print what has changed, and store it in $(BASELINE)'
	@echo 'make weights  train the published flows anew and say what changed; NAMES=conv-K0.9 for some,'
	@echo '               CHECK=1 to write nothing and fail if a likelihood has changed'
	@echo 'make clean  remove .venv and caches; keep results and reports'

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@'$(PYTHON)' -c '$(SUPPORTED)' || { echo '$(UNSUPPORTED)' >&2; exit 2; }
	@echo 'env: .venv from $(PYTHON)'
	@rm -f .venv/.installed-*
	@'$(PYTHON)' -m venv .venv
	@$(PIP) setuptools
	@echo 'env: torch (some 200 MB, once)'
	@$(PIP) --no-deps --retries 2 $(addprefix --extra-index-url ,$(TORCH_INDEX)) torch
	@echo 'env: everything else'
	@$(PIP) --no-build-isolation -e '.[dev,docs,peers,baselines,distributed]'
	@touch $@

# One thread per worker, because the workers already use all cores.
test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --timeout 240

# The page is there after the first suite, and grows.
bench: env
	@$(BIN)/resflow-bench run --preset $(PRESET) --results '$(RESULTS)' --out '$(REPORTS)'

check: env
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor --offline --quiet --persona pedantic .github/workflows

# Nothing is fetched, and every warning is an error.
docs: env
	@rm -rf build/site
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env \
		-d build/doctrees docs build/site
	@echo 'docs: build/site/index.html'

asv: env
	$(BIN)/python -m asv check --environment existing
	$(BIN)/python -m asv machine --yes
	$(BIN)/python -m asv run --environment existing --quick --dry-run --show-stderr

# asv with environments that use the packages of this one, torch included.
ASV_OVERLAY := HOST_SITE=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	$(BIN)/python -m asv
OVERLAY := --config asv.overlay.conf.json

# A forked process must not use CUDA. Without CUDA, forking saves an import of torch per benchmark.
LAUNCH := $(if $(shell command -v nvidia-smi),spawn,forkserver)

# Both commits are built and measured in turn, so that disturbances of the machine affect both alike.
# Earlier results of the two commits are removed, since they were measured at another time. asv's exit
# code is ignored: it is 1 for a slower benchmark and for a misspelt commit alike. `gate` decides.
asv-pair: env
	@test '$(BASE)' -a '$(NEW)' || { echo 'make asv-pair BASE=main NEW=HEAD: name both' >&2; exit 2; }
	@$(BIN)/python -m asv machine --yes >/dev/null
	@for commit in $(BASE) $(NEW); do \
		rm -f results/asv/*/$$(git rev-parse --short=8 "$$commit^{commit}")-*.json; \
	done
	-$(ASV_OVERLAY) continuous $(OVERLAY) --interleave-rounds --show-stderr \
		--launch-method $(LAUNCH) $(BASE) $(NEW)

# One suite at a time, since asv writes no result of a run that dies.
asv-history: env
	@$(BIN)/python -m asv machine --yes >/dev/null
	@status=0; \
	for suite in $(notdir $(patsubst %/__init__.py,%,$(shell grep -lE 'def (time|track)_' suites/*/__init__.py))) \
		'[a-z_]*against_normflows'; do \
		$(ASV_OVERLAY) run $(OVERLAY) --record-samples --show-stderr \
			--launch-method $(LAUNCH) --bench "^$$suite\." 'HEAD^!' || status=$$?; \
	done; \
	rm -rf build/history; \
	$(BIN)/resflow-bench export build/history || status=$$?; \
	$(BIN)/python -m asv publish $(OVERLAY) || status=$$?; \
	exit $$status

# `launches` counts on a stand-in accelerator, which must not take the place of a real one.
accuracy: env
	@rm -rf build/gate
	CUDA_VISIBLE_DEVICES= $(BIN)/resflow-bench run $(ACCURACY) --preset smoke --results build/gate

# With the same seeds the noise is the same, so an undecided metric has drawn other or more numbers.
gate: accuracy
	$(BIN)/resflow-bench gate $(BASELINE) build/gate/runs/* --max-undecided 0

baseline: accuracy
	@test ! -e $(BASELINE) || $(BIN)/resflow-bench gate $(BASELINE) build/gate/runs/* || true
	@rm -rf $(BASELINE) && mv build/gate/runs/* $(BASELINE)

# An hour of training on one core; what was interrupted goes on.
weights: env
	$(BIN)/python -m resflow_bench.models.publish $(NAMES) $(if $(CHECK),--check) --results '$(RESULTS)'

clean:
	rm -rf .venv .asv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find resflow_bench suites tests -name __pycache__ -prune -exec rm -rf {} +
