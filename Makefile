# `make bench` and `make test` do all the set-up they need, in .venv; a second run only works.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPING := $(VENV)/.developing
HOROVOD := $(VENV)/.horovod
PEERS := .venv-peers
VARIANT ?= cpu
# With CUDA's libraries where a driver is; EXTRAS= leaves them out.
EXTRAS ?= $(shell { command -v nvidia-smi || ls /dev/nvidia0; } >/dev/null 2>&1 && echo gpu)
# Compiling all modules would take longer than compiling those that are used, when they are.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable
# Side by side, a file each; many of them wait for others, so a third process keeps two cores busy.
BESIDE = $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
TEST_PROCESSES ?= 3
# Else each of the hundreds of processes of the tests compiles the same modules again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help bench train peers test test-all test-fast lint lock image image-test clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# The first time without Horovod, which takes minutes to build; then with it, beside the same baseline.
bench: $(INSTALLED) ## measure throughput and accuracy of every strategy on 1 and 2 devices; builds Horovod the first time
	@if [ -e $(HOROVOD) ]; then exec $(BIN)/mnist-dist bench run quick; fi; \
	study=results/quick-$$(date +%Y%m%d-%H%M%S); \
	echo "Horovod is skipped at first: make builds it afterwards, in some minutes, and then completes the table."; \
	$(BIN)/mnist-dist bench run quick --strategies single,mirrored,multiworker --results $$study || exit; \
	echo; echo "Building Horovod, to measure it beside the same baseline; the report above stays."; \
	$(MAKE) --no-print-directory $(HOROVOD) && exec $(BIN)/mnist-dist bench run quick --results $$study --resume

train: $(INSTALLED) ## train the default configuration on the embedded MNIST
	@$(BIN)/mnist-dist train

peers: $(HOROVOD) $(PEERS)/.installed ## measure Keras' fit, Horovod's example and PyTorch beside ours
	@$(BIN)/mnist-dist bench peers --pytorch-python $(PEERS)/bin/python

test: $(HOROVOD) $(DEVELOPING) ## run the tests; installs Slurm where it may, builds Horovod the first time
	@slurm/install_for_tests.sh
	@$(BESIDE) -m "not thorough"

test-all: $(HOROVOD) $(DEVELOPING) ## run the tests that take long, too
	@slurm/install_for_tests.sh
	@$(BESIDE)

test-fast: $(DEVELOPING) ## run the unit tests, in less than a minute
	@$(BIN)/python -m pytest -m "not slow and not thorough" --numprocesses $(TEST_PROCESSES) --dist loadfile --durations 3

lint: $(DEVELOPING) ## check style, types and who imports whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

lock: $(DEVELOPING) ## renew constraints.txt for every supported Python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate \
		--extra dev --extra gpu --extra mlperf setup.cfg --upgrade --output-file constraints.txt

image: ## build the container image; VARIANT=gpu for GPUs (see docker/README.md)
	@docker/build.sh $(VARIANT) $(IMAGE_OPTIONS)

image-test: ## run the quick suite inside the built image and check its report
	@docker/test.sh $(VARIANT)

clean: ## remove the environment and caches (not your runs)
	@rm -rf $(VENV) $(PEERS) .mypy_cache .import_linter_cache .pytest_cache .ruff_cache *.egg-info

$(PEERS)/.installed: benchmarks/peers/requirements-pytorch.txt
	@$(PYTHON) -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(HOROVOD): $(INSTALLED) mnist_dist/distributed/horovod_build.py mnist_dist/distributed/horovod_patches.yaml
	@$(BIN)/mnist-dist install-horovod
	@touch $@

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing; install it (apt-get install python3 python3-venv) or name another with PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { echo "make: found $$($(PYTHON) --version), expected Python 3.10 to 3.13; name one with PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: Python's venv module is missing; install it (apt-get install python3-venv)" >&2; exit 2; }
	@$(BIN)/python -c '' 2>/dev/null || { echo "Creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing into $(VENV): TensorFlow and its dependencies, a minute or two the first time"
	@$(INSTALL) '.$(EXTRAS:%=[%])' \
		|| { echo "make: the installation failed, see above; pip needs the network or a local index" >&2; exit 2; }
	@$(BIN)/python -m mnist_dist.network.cpu.build \
		|| { echo "make: TensorFlow was installed, but cannot be imported, see above" >&2; exit 2; }
	@touch $@

$(DEVELOPING): $(INSTALLED)
	@echo "Installing into $(VENV): what tests and checks need"
	@$(INSTALL) '.[dev]' || { echo "make: the installation failed, see above" >&2; exit 2; }
	@touch $@
