#!/usr/bin/env bash
# Sets everything up in .venv, then lints, checks types and runs the tests against the built wheel, with a process for each
# core. usage: tools/test.sh [PYTEST ARGUMENTS]
#
# While editing, in about a minute, without what takes seconds or starts servers:
#     tools/test.sh -m "not slow and not servers"
# Markers are listed in pyproject.toml; -n0 runs all in one process, for a debugger.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh
make_venv .venv test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
# `pytest`, not `python -m pytest`: the checkout stays off the import path, so the wheel is what is tested. Each process
# begins with tests that lie together and share what a module makes; who has none left takes half of another's.
said=$(mktemp)
trap 'rm -f "$said"' EXIT
.venv/bin/pytest -n auto --dist worksteal "$@" | tee "$said"
# An exit code of 0 is believed only with the closing line.
grep -Eq '[0-9]+ passed' "$said" || { echo "pytest ran no test" >&2; exit 1; }
