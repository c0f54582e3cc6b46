# Everything a newcomer types. Each target makes the environment that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
S3_DIR ?= .normscope/s3
S3_PORT ?= 9103
TEST_PROCESSES ?= 2
LOCK := requirements.lock
GPU_PYTHON ?= python3
GPU_PYTHON_VERSION ?= 3.12
GPU_HAS ?=
GPU_OPTIONS ?=
GPU_WHEELS := build/gpu-wheels
GPU_SITE := build/gpu-site
CARRIED := $(wildcard $(GPU_WHEELS)/*.whl)

.DEFAULT_GOAL := help
.PHONY: help demo test test-hosts check lint format docs audit lock lock-lowest gpu-check gpu-wheels s3-up s3-down clean

help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)$$/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 15

demo: $(VENV)/.installed ## The whole chain on planted anomalies, on this machine alone
	$(BIN)/normscope demo

# Tests wait a good part of their time, so processes share them: by files, as the tests of one share
# its servers, and in the order of collection, which begins with the slow files.
test: lint ## Everything that must hold: style, types, tests
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

check: lint ## The inner loop, under two minutes: style, types and the tests that start no server
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile -q -m "not slow and not server"

lint: $(VENV)/.installed-dev ## Style, spelling and types only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(BIN)/mypy

docs: $(VENV)/.installed-dev ## The documentation, built strictly into build/docs; notebooks run
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

audit: $(VENV)/.installed-dev ## Known vulnerabilities of the locked versions, as far as the package index tells
	$(BIN)/pip-audit --disable-pip --no-deps --requirement $(LOCK)

format: $(VENV)/.installed-dev ## Put the style right where that can be done by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# uv lives in an environment of its own, which goes afterwards; the lock names no place to download from.
lock: $(VENV)/.created ## Choose every version anew and write them to requirements.lock
	@$(call compile,--upgrade)

lock-lowest: $(VENV)/.created ## The same, with the lowest versions that pyproject.toml allows
	@$(call compile,--upgrade --resolution lowest-direct)

define compile
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	$(PYTHON) -m venv "$$dir" && "$$dir/bin/pip" install --quiet uv && \
	"$$dir/bin/uv" pip compile --quiet --universal --python-version 3.11 --extra dev --extra docs $(1) \
	  --no-header --no-emit-index-url --no-emit-find-links --output-file "$$dir/lock" pyproject.toml && \
	{ echo '# Every version of the environment, as constraints: `make lock` writes it, the Makefile installs under it.' && \
	  cat "$$dir/lock"; } > $(LOCK).new && mv $(LOCK).new $(LOCK)
endef

# Where wheels have been carried along, they serve beside the PyTorch of GPU_PYTHON, which stays as it
# is; elsewhere the project's own environment does.
gpu-check: $(if $(CARRIED),$(GPU_SITE)/.installed,$(VENV)/.installed) ## What needs a GPU, within eight minutes, without a network
	$(if $(CARRIED),PYTHONPATH=$(GPU_SITE) $(GPU_PYTHON),$(BIN)/python) -m benchmarks.gpu_check --json build/gpu-check.json $(GPU_OPTIONS)

# GPU_HAS names what the machine with the GPU has already, as the names of wheels begin: scikit_learn.
gpu-wheels: $(VENV)/.created ## Fetch what `make gpu-check` needs beside PyTorch into build/gpu-wheels
	rm -rf $(GPU_WHEELS)
	$(BIN)/pip download --quiet --disable-pip-version-check --only-binary :all: --dest $(GPU_WHEELS) \
	  --python-version $(GPU_PYTHON_VERSION) --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
	  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -c $(LOCK) -r benchmarks/gpu_check_packages.txt
	rm -f $(foreach name,$(GPU_HAS),$(GPU_WHEELS)/$(name)-*.whl)

test-hosts: $(VENV)/.installed-dev ## The chain on hosts that share nothing but a network; as root
	$(BIN)/pytest -rs tests/e2e/hosts

s3-up: $(VENV)/.created ## Start a real S3 server on loopback; prints the variables to export
	@$(BIN)/python -m infra.s3.server up $(S3_DIR) --port $(S3_PORT)

s3-down: $(VENV)/.created ## Stop it again; its data stay
	@$(BIN)/python -m infra.s3.server down $(S3_DIR)

clean: ## Remove the environment and the caches, never the data below .normscope
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info

# Stamps: the environment is made once, and installed into again when the lock or the project changes.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1), but Python 3.11 or later is needed." \
	    "Name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(LOCK) pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(LOCK) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created $(LOCK) pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(LOCK) -e '.[dev,docs]'
	@touch $@ $(VENV)/.installed

$(GPU_SITE)/.installed: $(CARRIED)
	rm -rf $(GPU_SITE)
	$(GPU_PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target $(GPU_SITE) $(CARRIED)
	@touch $@
