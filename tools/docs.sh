#!/usr/bin/env bash
# Builds the documentation's site into .site/html, in .venv-docs; any warning is an error. usage: tools/docs.sh
# To look at it while writing: tools/docs.sh && python3 -m http.server -d .site/html
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv-docs/bin/python ] || "${PYTHON:-python3}" -m venv .venv-docs
.venv-docs/bin/pip install --quiet 'zensical==0.0.73' 'mkdocstrings[python]==1.0.8'
.venv-docs/bin/python tools/site.py .site/pages
said=$(mktemp)
trap 'rm -f "$said"' EXIT
.venv-docs/bin/zensical build --clean --strict 2>&1 | tee "$said"
# What is wrong with a docstring is said and not counted by --strict.
if grep -q '^griffe:' "$said"; then echo "docstrings are not in order: see above" >&2; exit 1; fi
