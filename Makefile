# Everything runs from .venv, which `make install` builds from the hashed lock; each target installs first if need be.
.DEFAULT_GOAL := help
.PHONY: help install demo up down status test loop gpu-smoke check fmt bench
BIN := .venv/bin
export PYTHON

help: ## show these lines
	@awk -F ':.*## ' '/^[a-z-]+: .*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

install: ## build the environment: uv, the packages of requirements.lock, Kafka's and Flink's jars
	@sh scripts/install.sh

demo: install  ## the whole system on real purchases, from nothing to a live recommendation
	@$(BIN)/headwater demo

up: install  ## start the servers and leave them running
	@$(BIN)/headwater up

down: ## end what `make up` started
	@if [ -x $(BIN)/headwater ]; then $(BIN)/headwater down; fi

status: install  ## what runs, and whether it answers
	@$(BIN)/headwater status

test: install  ## all tests, with the real servers
	@$(BIN)/python -m pytest -n 4

loop: install  ## two generations of the loop against real servers, four minutes
	@HEADWATER_TEST_FULL=1 $(BIN)/python -m pytest tests/benchmarks/test_loop.py

gpu-smoke: install  ## train on this machine's GPU, if it has one, and hold it to the CPU
	@$(BIN)/python -m pytest -rs tests/models/test_gpu.py

check: install  ## lint, format, types, import rules, spelling, compose file, generated code
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/python scripts/check_compose.py
	$(BIN)/python -m serving.generate --check

fmt: install  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## the measurements of docs/performance.md
	@$(BIN)/headwater bench
