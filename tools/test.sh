#!/usr/bin/env bash
# Sets everything up in .venv, then lints, checks types and runs the tests against the built wheel.
# usage: tools/test.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh
make_venv .venv test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
# `pytest`, not `python -m pytest`: the checkout stays off the import path, so the wheel is what is tested.
.venv/bin/pytest "$@"
