#!/usr/bin/env bash
# Runs the tests with the oldest libraries that pyproject.toml allows, those of the extras included, in .venv-oldest; tests that
# start servers and those that take long are left out, unless -m says otherwise.
# TORCH=2.13.0 takes another torch than the oldest, VENV=DIR another environment. usage: tools/oldest.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv-oldest}
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
rm -rf build dist
"$VENV/bin/pip" wheel --quiet --no-deps --wheel-dir dist .
rm -rf build
oldest=$(mktemp)
trap 'rm -f "$oldest"' EXIT
# What users have. The tools of the tests are as new as they are, and vLLM brings a torch of its own (tools/vllm.sh).
TORCH=${TORCH:-} "$VENV/bin/python" - > "$oldest" <<'PYTHON'
import os
import re
from pathlib import Path

text = Path("pyproject.toml").read_text()
core = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.M | re.S)[1]
extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^test = ", text, re.M | re.S)[1]
lines = [line for line in extras.splitlines() if not line.startswith(("bench", "vllm"))]
floors = dict(re.findall(r'"([\w-]+)>=([\d.]+)', "\n".join([core, *lines])))
floors["torch"] = os.environ["TORCH"] or floors["torch"] + ".*"
for name, version in floors.items():
    print(f"{name}=={version}" if name == "torch" else f"{name}=={version}.*")
PYTHON
cat "$oldest"
# The oldest s3fs says with boto3 which release of it goes with it; without, pip tries one after another for many minutes.
"$VENV/bin/pip" install --quiet -c "$oldest" "$(echo dist/*.whl)[test]" "s3fs[boto3]"
"$VENV/bin/pytest" -n "${PROCESSES:-auto}" --dist worksteal -m "not servers and not slow" "$@"
