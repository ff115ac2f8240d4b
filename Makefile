# Every target works on a fresh machine with Python 3.11 and make: the environments below are made when they are missing
# or older than pyproject.toml or constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := python -m pip --quiet --disable-pip-version-check
# The same releases on every machine; by these variables also of what builds the package (the first one for an older pip).
PINNED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test test-long test-js lint format bench bench-scaling chaos fuzz demo constraints clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.venv/run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PINNED) $(BIN)/$(PIP) install --constraint constraints.txt --editable '.[client]'
	touch $@

.venv/dev: pyproject.toml constraints.txt .venv/run
	$(PINNED) $(BIN)/$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

run: .venv/run  ## Start the service on the embedded bus, at http://127.0.0.1:8089
	exec $(BIN)/msgpush serve

test: .venv/dev  ## Run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not long'

test-long: .venv/dev  ## Run those that take long: other servers, failovers, chaos
	$(BIN)/python -m pytest --numprocesses 2 --dist load -m long

test-js:  ## Run the tests of the JavaScript client (these need Node.js and npm)
	cd clients/js && npm ci --silent --no-audit --no-fund && npm test

lint: .venv/dev  ## Check style, types and architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

AGAINST ?=
bench: .venv/run  ## Measure the service beside bare floors, or against another version: make bench AGAINST=REV
	$(BIN)/python -m bench $(if $(AGAINST),--against '$(AGAINST)')

bench-scaling: .venv/dev  ## Let an autoscaler follow streams that ramp up and down; count what is lost (needs Caddy)
	$(BIN)/python -m bench.scaling $(if $(QUICK),--quick)

SECONDS ?= 60
SEED ?= 1
chaos: .venv/dev  ## Let Redis and instances fail at random under load: make chaos SECONDS=120 SEED=7
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED)

TARGET ?=
fuzz: .venv/dev  ## Try the parsers with made and changed texts: make fuzz SECONDS=600 TARGET=message SEED=7
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED) --target '$(TARGET)'

demo: .venv/run  ## Index a folder of documents and watch it live in a page
	$(BIN)/python -m demo

constraints:  ## Pin everything anew: the newest releases that pyproject.toml allows
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/$(PIP) install '.[dev]' 'hatchling<2' editables
	echo '# Made by `make constraints`: what `make` and the image install, release by release.' > build/constraints.txt
	build/constraints/bin/$(PIP) freeze --exclude msgpush >> build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/constraints

clean:  ## Remove what the other targets made
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
