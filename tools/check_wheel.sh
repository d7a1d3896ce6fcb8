#!/usr/bin/env bash
# Installs the wheel in dist/ beside a given PyTorch into an empty environment and runs the Python tests there, from a folder
# without the sources and without a compiler on the PATH (tests that build something say that they are skipped).
#   tools/check_wheel.sh torch==2.13.0 [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
TORCH=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q "$TORCH"
pin=$("$work/venv/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))')
echo "$pin" >"$work/constraints"
"$work/venv/bin/python" tools/extra.py demo >"$work/requirements"
"$work/venv/bin/python" tools/extra.py dev | grep -E '^(hypothesis|mpmath|pytest|expecttest)' >>"$work/requirements"
"$work/venv/bin/python" -m pip install -q -c "$work/constraints" -r "$work/requirements" dist/*.whl
cp -r tests pyproject.toml README.md docs examples "$work/"
cd "$work"
# Nothing but Python itself: no g++, cmake or nvcc.
mkdir bin && ln -s "$work/venv/bin/python" bin/python
env -u CUDACXX PATH="$work/bin:/nowhere" "$work/venv/bin/python" -c "
import torch, torch_ssam
print('torch', torch.__version__, 'torch_ssam', torch_ssam.__version__, torch.ops.torch_ssam.cpu_capability())"
env -u CUDACXX PATH="$work/bin:/nowhere" "$work/venv/bin/python" -m pytest -q -n "${JOBS:-2}" "$@"
