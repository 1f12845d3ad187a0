# Needs Python ≥ 3.11 and make; everything else is installed into .venv.
PYTHON ?= python3

.PHONY: demo test test-slow test-oldest lint bundle types clean

demo: .venv/installed
	.venv/bin/groundavideo demo

test: .venv/installed
	.venv/bin/python -m pytest -n auto

test-slow: .venv/installed
	.venv/bin/python -m pytest -n auto -m slow

# The lower ends of the dependencies, in an environment of its own: downloads several GB.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest -n auto

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python scripts/build_bundle.py --check

# The pipeline as one file, examples/community/ground_a_video.py: after a change of the modules it is made of.
bundle: .venv/installed
	.venv/bin/python scripts/build_bundle.py

types: .venv/installed
	.venv/bin/mypy

clean:
	rm -rf build dist src/*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable ".[test]"
	touch $@

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[test]"
	touch $@
