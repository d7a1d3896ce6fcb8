#!/usr/bin/env bash
# Builds dist/: an sdist, and from it, unpacked, a wheel that auditwheel accepts, so that the sdist is known to be complete.
# LibTorch, its libraries and CUDA's stay outside: they are the installed PyTorch's. The CUDA kernels are inside where nvcc
# >= 12.8 is found; FORCE_CUDA=1 and FORCE_CUDA=0 say with and without (docs/wheels.md). `make wheel` calls it.
#   tools/make_wheel.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
PY=${1:-python3}
rm -rf dist build/wheel/raw build/wheel/torch_ssam-*
mkdir -p build/wheel
"$PY" -m build --no-isolation --sdist --outdir dist . >build/wheel/sdist.log 2>&1 || { tail -30 build/wheel/sdist.log; exit 1; }
tar xzf dist/*.tar.gz -C build/wheel
unset TORCH_SSAM_BUILD_DIR
"$PY" -m build --no-isolation --wheel --outdir build/wheel/raw build/wheel/torch_ssam-*/ >build/wheel/wheel.log 2>&1 ||
  { tail -30 build/wheel/wheel.log; exit 1; }
"$PY" tools/repair_wheel.py build/wheel/raw/*.whl dist
