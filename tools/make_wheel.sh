#!/usr/bin/env bash
# Builds dist/: an sdist, and a wheel that auditwheel accepts. LibTorch, its libraries and CUDA's stay outside: they are the
# installed PyTorch's. The sdist is unpacked and built, so that it is known to be complete. `make wheel` calls it.
#   tools/make_wheel.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
PY=${1:-python3}
rm -rf dist build/wheel
mkdir -p build/wheel
"$PY" -m build --no-isolation --sdist --outdir dist . >build/wheel/sdist.log 2>&1 || { tail -30 build/wheel/sdist.log; exit 1; }
tar xzf dist/*.tar.gz -C build/wheel
unset TORCH_SSAM_BUILD_DIR
"$PY" -m build --no-isolation --wheel --outdir build/wheel/raw build/wheel/torch_ssam-*/ >build/wheel/wheel.log 2>&1 ||
  { tail -30 build/wheel/wheel.log; exit 1; }
exclude=()
for name in libtorch.so libtorch_cpu.so libtorch_cuda.so libtorch_python.so libc10.so libc10_cuda.so \
  'libgomp*' 'libcuda.so.*' 'libcudart.so.*' libtorch_ssam.so; do
  exclude+=(--exclude "$name")
done
"$PY" -m auditwheel repair "${exclude[@]}" --wheel-dir dist build/wheel/raw/*.whl
"$PY" -m auditwheel show dist/*.whl
ls -l dist
