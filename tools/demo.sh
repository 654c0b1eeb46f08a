#!/usr/bin/env bash
# Sets everything up in .venv and runs the demo. usage: tools/demo.sh [DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh
make_venv .venv demo
.venv/bin/relex-codec demo "$@"
