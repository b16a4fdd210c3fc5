# `make help` lists the targets. All set-up happens here: .venv is created from the pinned
# requirements when it is missing or they have changed, and nothing outside this folder is touched.

SHELL := /bin/sh
.DEFAULT_GOAL := help

ARCH ?= RepVGGA0
PYTHON := .venv/bin/python
PIP := env -u PYTHONPATH -u PYTHONHOME $(PYTHON) -m pip --disable-pip-version-check --no-cache-dir --quiet

unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help demo test test-slow torture gpu-check lint format verify bench show-samples docs docs-update clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/runtime ## train ARCH (RepVGGA0) on the digits, fuse it, compare both forms and test it: 2 minutes
	$(eval NAME := $(shell $(PYTHON) train.py --arch '$(ARCH)' --show-config | sed -n 's/^arch = //p'))
	@test -n '$(NAME)'
	@rm -rf checkpoints/$(NAME)/demo
	$(PYTHON) train.py --arch $(NAME) --tag demo
	$(PYTHON) verify.py --arch $(NAME) --model checkpoints/$(NAME)/demo/best.pkl
	$(PYTHON) test.py --arch $(NAME) --model checkpoints/$(NAME)/demo/best.pkl --switch-deploy 1
	@printf '%s\n' '' 'What to try next:' \
	  '  . .venv/bin/activate' \
	  '  python train.py --data DIR --arch $(NAME)       your own images: DIR/train/<class>/*.jpg, DIR/val/<class>/*.jpg' \
	  '  python verify.py --arch all                     the equivalence check of every network' \
	  '  python test.py --model checkpoints/$(NAME)/demo/best-deploy.pkl --deploy 1' \
	  '  xdg-open checkpoints/$(NAME)/demo/curves.png    what the training looked like'

test: .venv/runtime .venv/development ## run the tests: about 12 minutes on 2 cores
	$(PYTHON) -m pytest --numprocesses 2 --dist worksteal -m 'not slow'

test-slow: .venv/runtime .venv/development ## run the tests that take longest: about half an hour on 2 cores
	$(PYTHON) -m pytest --numprocesses 2 --dist worksteal -m slow

torture: .venv/runtime .venv/development ## stop and kill runs at random moments, read damaged files: about half an hour
	$(PYTHON) tests/torture/stop.py --times 50
	$(PYTHON) tests/torture/stop.py --times 5 --ngpus 2
	$(PYTHON) tests/torture/kill.py --times 20
	$(PYTHON) tests/torture/kill.py --times 5 --ngpus 2
	$(PYTHON) tests/torture/mutate.py --files 10000

gpu-check: .venv/runtime ## run what needs a GPU, and print a table for an issue: 10 minutes at most
	@PYTHONPATH=. $(PYTHON) tests/gpu/check.py

lint: .venv/runtime .venv/development ## check style and formatting with ruff, types with mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: .venv/development ## let ruff format and mend what it can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

verify: .venv/runtime ## check that every network computes the same before and after fusion
	$(PYTHON) verify.py --arch all

bench: .venv/runtime ## time a training step: MegEngine as it comes against this project
	$(PYTHON) benchmark.py train

show-samples: .venv/runtime ## write samples.png, what the network sees of DATA, with FLAGS of train.py
	$(PYTHON) train.py $(if $(DATA),--data '$(patsubst ~/%,$(HOME)/%,$(DATA))') $(FLAGS) --show-samples

docs: .venv/runtime ## check that the documentation's tables and picture are those of docs/results
	PYTHONPATH=. $(PYTHON) scripts/make_docs.py

docs-update: .venv/runtime ## write the documentation's tables and picture anew from docs/results
	PYTHONPATH=. $(PYTHON) scripts/make_docs.py --update

clean: ## remove the virtual environment and what pip has built (checkpoints stay)
	rm -rf .venv .python build *.egg-info

# ---------------------------------------------------------------------------------------------

.venv/created:
	@python=$$(scripts/find-python310) && echo "creating .venv with $$python" && "$$python" -m venv --clear .venv
	@touch $@

# what numba compiles for training is kept in .venv; it takes a minute
.venv/runtime: .venv/packages $(wildcard models/cpu/fast/*.py)
	@PYTHONPATH=. $(PYTHON) -m models.cpu.fast
	@touch $@

.venv/packages: requirements.txt | .venv/created
	@echo "installing the pinned requirements into .venv (once; MegEngine alone is 0.9 GB)"
	@grep -E '^(setuptools|wheel)==' requirements.txt | $(PIP) install --no-deps -r /dev/stdin
	@grep -E '^megengine==' requirements.txt | $(PIP) install --no-deps -r /dev/stdin # stays if the next is interrupted
	@$(PIP) install --no-deps --no-build-isolation -r requirements.txt
	@$(PIP) check
	@touch $@

.venv/development: requirements-dev.txt | .venv/runtime
	@$(PIP) install --no-deps -r requirements-dev.txt
	@touch $@
