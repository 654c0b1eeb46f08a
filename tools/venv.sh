# Makes the virtual environment DIR with the extras that are named, from the wheel built here; sourced by the scripts
# beside it. usage: make_venv DIR EXTRA
make_venv() {
    local dir=$1 extra=$2
    [ -x "$dir/bin/python" ] || "${PYTHON:-python3}" -m venv "$dir"
    # The CPU build where there is one: the newest torch brings gigabytes of CUDA packages. Any torch >= 2.4 will do.
    "$dir/bin/python" -c 'import torch' 2>/dev/null || "$dir/bin/pip" install --quiet 'torch==2.13.0'
    rm -rf build dist
    "$dir/bin/pip" wheel --quiet --no-deps --wheel-dir dist .
    rm -rf build
    "$dir/bin/pip" install --quiet --force-reinstall --no-deps dist/*.whl
    "$dir/bin/pip" install --quiet "$(echo dist/*.whl)[$extra]"
}
