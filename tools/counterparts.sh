#!/usr/bin/env bash
# Compares what is read of trainers' files with what the trainers' own tools make of them: verl's model_merger, TRL's
# GRPOTrainer, peft, accelerate; and encodes on a cluster of Ray that loses nodes. Sets up .venv-counterparts for that;
# what cannot be installed is skipped by name.
# usage: tools/counterparts.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh
make_venv .venv-counterparts test
install() { # packages, as arguments of pip
    .venv-counterparts/bin/pip install --quiet "$@" || echo "not installed, its comparisons are skipped: $*" >&2
}
install 'trl==1.16.*' 'peft>=0.21' datasets
# verl pins versions of packages that its merger does not need: without its dependencies, and then those that it imports
install --no-deps 'verl==0.9.1'
install codetiming hydra-core omegaconf orjson pillow tensordict torchdata
install 'ray[default]>=2.60' psutil
said=$(mktemp)
trap 'rm -f "$said"' EXIT
.venv-counterparts/bin/pytest -n 0 -rs tests/counterparts "$@" | tee "$said"
grep -Eq '[0-9]+ passed' "$said" || { echo "pytest ran no comparison" >&2; exit 1; }
