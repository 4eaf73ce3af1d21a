# Each target first makes .venv what constraints.txt says; when it is, that installs nothing.
#   make demo                                 the whole path on generated videos, in minutes
#   make demo VIDEOS=folder-or-s3-prefix      on your own videos (LABELS=folders: fine-tuning too)
#   make test, make test-slow, make check     tests, the slow rest, static checks
#   make bench-decode VIDEOS=folder           our decoder beside the authors' loader and the limit (default: generated)
#   make bench-feed [UNITS=300]                 how much of the pure decode rate arrives at a worker
#   make bench-memory [DECODES=5000]          memory over thousands of decodes with each backend
#   make bench-manifest [ROWS=10000000]       a manifest of very many rows: time, memory, look-up
#   make bench-recovery [KILLS=10] [NODES=5]  seconds from a death to the next step, and where they go
#   make bench-step [ROUNDS=3]                what exact mode, background saves and accounting cost a step
#   make sweep-demo                           a sweep on generated videos, killed and resumed
#   make chaos [SEED=1]                       a run through twenty faults beside one without any
#   make chaos-matrix                         every kind of fault at every place of a run

PYTHON := .venv/bin/python
LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --group dev

.PHONY: demo demo-study test test-slow check bench-decode bench-feed bench-memory bench-manifest bench-recovery bench-step sweep-demo chaos chaos-matrix format constraints clean install

demo: install
	$(PYTHON) jobs/demo.py $(if $(VIDEOS),'videos=$(VIDEOS)') $(if $(LABELS),'labels=$(LABELS)')

demo-study: install
	$(PYTHON) jobs/demo.py study=true

test: install
	$(PYTHON) -m pytest -m "not slow and not gpu"

test-slow: install
	$(PYTHON) -m pytest -m "slow and not gpu"

check: install
	.venv/bin/ruff format --check && .venv/bin/ruff check && .venv/bin/pyright && .venv/bin/lint-imports --no-logo

bench-decode: install
	$(PYTHON) tests/benchmarks/bench_decode.py $(if $(VIDEOS),'videos=$(VIDEOS)')

bench-feed: install
	$(PYTHON) tests/benchmarks/bench_feed.py $(if $(UNITS),units=$(UNITS))

bench-memory: install
	$(PYTHON) tests/benchmarks/bench_memory.py $(if $(DECODES),decodes=$(DECODES))

bench-manifest: install
	$(PYTHON) tests/benchmarks/bench_manifest.py $(if $(ROWS),rows=$(ROWS))

bench-recovery bench-step sweep-demo chaos chaos-matrix: export PYTHONPATH := $(CURDIR)/tests/support

bench-recovery: install
	$(PYTHON) tests/benchmarks/bench_recovery.py $(if $(KILLS),kills=$(KILLS)) $(if $(NODES),nodes=$(NODES))

bench-step: install
	$(PYTHON) tests/benchmarks/bench_step.py $(if $(ROUNDS),rounds=$(ROUNDS))

sweep-demo: install
	$(PYTHON) tests/benchmarks/sweep_demo.py

chaos: install
	$(PYTHON) tests/benchmarks/chaos.py $(if $(SEED),seed=$(SEED))

chaos-matrix: install
	$(PYTHON) tests/benchmarks/chaos_matrix.py $(if $(KINDS),'kinds=$(KINDS)')

format: install
	.venv/bin/ruff format && .venv/bin/ruff check --fix

constraints: install
	.venv/bin/uv pip compile $(LOCK) --system-certs --quiet --custom-compile-command "make constraints" pyproject.toml -o constraints.txt

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

install:
	@sh infra/bootstrap.sh
