#!/usr/bin/env bash
# Runs the tests with the oldest dependencies that pyproject.toml allows, in .venv-oldest; those that start servers and those
# that take long are left out. TORCH=2.13.0 takes another torch than the oldest. usage: tools/oldest.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv-oldest/bin/python ] || "${PYTHON:-python3}" -m venv .venv-oldest
rm -rf build dist
.venv-oldest/bin/pip wheel --quiet --no-deps --wheel-dir dist .
rm -rf build
oldest=$(mktemp)
trap 'rm -f "$oldest"' EXIT
# Of the core dependencies: what users of the package itself have. The extras' libraries are as new as they fit.
TORCH=${TORCH:-} .venv-oldest/bin/python - > "$oldest" <<'PYTHON'
import os
import re
from pathlib import Path

section = re.search(r"^dependencies = \[\n(.*?)^\]", Path("pyproject.toml").read_text(), re.M | re.S)[1]
for name, version in re.findall(r'"([\w-]+)>=([\d.]+)"', section):
    torch = name == "torch" and os.environ["TORCH"]
    print(f"{name}=={torch}" if torch else f"{name}=={version}.*")
PYTHON
cat "$oldest"
.venv-oldest/bin/pip install --quiet -r "$oldest"
.venv-oldest/bin/pip install --quiet -c "$oldest" "$(echo dist/*.whl)[test]"
.venv-oldest/bin/pytest -n auto --dist worksteal -m "not servers and not slow" "$@"
