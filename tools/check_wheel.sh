#!/usr/bin/env bash
# Installs the wheel in dist/ beside each PyTorch named into an empty environment, builds the C++ project of tests/cpp/consumer
# against it there, and runs the Python tests from a folder that holds the sdist without the package's sources, with no
# compiler on the PATH. What a test lacks it names (pytest -ra). `make wheel` calls it.
#   tools/check_wheel.sh 2.13.0 2.14.1 2.10.0 [-- pytest arguments]
# Each environment is made afresh and removed; WHEEL_ENVS names a folder to keep them in and take them from.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
PYTHON=$(command -v "${PYTHON:-python3}")
case $PYTHON in /*) ;; *) PYTHON=$root/$PYTHON ;; esac
versions=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do versions+=("${1#torch==}"); shift; done
[ $# -eq 0 ] || shift
[ "${#versions[@]}" -gt 0 ] || { echo "check_wheel: name a version of PyTorch, for example 2.13.0"; exit 2; }
wheel=$(ls "$root"/dist/*.whl)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/sdist" build/wheel
tar xzf dist/*.tar.gz -C "$work/sdist" --strip-components 1
rm -rf "$work/sdist"/{torch_ssam,csrc,cmake,setup.py,CMakeLists.txt}
summary=()
failed=0
for version in "${versions[@]}"; do
  echo "check_wheel: PyTorch $version"
  venv=${WHEEL_ENVS:-$work}/torch-$version
  py=$venv/bin/python
  [ -x "$py" ] || "$PYTHON" -m venv "$venv"
  "$py" -c "import importlib.metadata as m; m.version('torch')" 2>/dev/null || "$py" -m pip install -q "torch==$version"
  "$py" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >"$work/constraints"
  # Everything but the tools that judge or build sources: with these no test is left out for want of a package.
  "$PYTHON" tools/extra.py all frameworks >"$work/requirements"
  "$PYTHON" tools/extra.py dev | grep -E '^(hypothesis|mpmath|pytest|expecttest)' >>"$work/requirements"
  "$py" -m pip install -q -c "$work/constraints" -r "$work/requirements"
  # As in bootstrap.sh: a torchvision made for another build of PyTorch breaks Lightning and transformers.
  "$py" -c 'import torchvision' 2>/dev/null || "$py" -m pip uninstall -q -y torchvision 2>/dev/null || true
  "$py" -m pip install -q --force-reinstall --no-deps "$wheel"
  "$py" -m pip check || true # what the extras say of each other is not ours to decide

  # A user's C++ project, against this wheel and this PyTorch. The tests run its programs. LibTorch with CUDA asks CMake for
  # a CUDA toolkit: nvcc's, with the nvrtc that PyTorch brings.
  consumer=$work/consumer-$version
  prefixes=$(cd "$work" && "$py" -c "import torch, torch_ssam as t; print(t.cmake_prefix_path, torch.utils.cmake_prefix_path, sep=';', end='')")
  toolkit=()
  nvrtc=$(find "$venv" -path '*/site-packages/nvidia/*' -name 'libnvrtc.so.*' -print -quit)  # none beside a CPU build
  if [ -n "$nvrtc" ] && command -v nvcc >/dev/null; then
    top=$(nvcc --dryrun -c /dev/null.cu 2>&1 | sed -n 's/^#\$ TOP=//p') || true
    toolkit=("-DCUDA_TOOLKIT_ROOT_DIR=$(realpath "${top:-/usr/local/cuda}")" "-DCUDA_nvrtc_LIBRARY=$nvrtc")
  fi
  log=$root/build/wheel/consumer-$version.log
  without=(--ignore tests/python/test_docs_paths.py) # the pages name sources, which are not here
  if { cmake -S "$work/sdist/tests/cpp/consumer" -B "$consumer" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefixes" "${toolkit[@]}" &&
    cmake --build "$consumer" --parallel "${JOBS:-2}" && "$consumer/consumer"; } >"$log" 2>&1; then
    echo "check_wheel: the C++ project builds and runs"
  else
    tail -30 "$log"
    echo "check_wheel: FAILED: the C++ project beside PyTorch $version; test_cpp_parity.py is left out"
    failed=1
    without+=(--ignore tests/python/test_cpp_parity.py)
  fi

  # Nothing but Python itself: no g++, cmake or nvcc. The home folder is new, so that no cache of compiled code helps.
  rm -rf "$work/bin" "$work/home" && mkdir "$work/bin" "$work/home" && ln -s "$py" "$work/bin/python"
  alone=(env -u CUDACXX -u CXX -u CC -u CUDA_HOME -u PYTHONPATH PATH="$work/bin:/nowhere" HOME="$work/home"
    TORCH_SSAM_CPP_CONSUMER="$consumer" "$py")
  cd "$work/sdist"
  what=$("${alone[@]}" - "$venv" <<'PY'
import hashlib, pathlib, sys
import torch, torch_ssam
from torch_ssam.ops import library
package = pathlib.Path(torch_ssam.__file__).parent
assert package.is_relative_to(sys.argv[1]), f"not the installed package: {package}"
operators, cuda = package / "lib/libtorch_ssam.so", package / "lib/libtorch_ssam_cuda.so"
if torch.version.cuda and cuda.exists():
    assert library.cuda_load_error is None, library.cuda_load_error
kernels = "no CUDA kernels in the wheel" if not cuda.exists() else "CUDA kernels " + ("loaded" if torch.version.cuda else "not wanted")
digest = hashlib.sha256(operators.read_bytes()).hexdigest()[:16]
print(f"torch {torch.__version__}, libtorch_ssam.so {digest}, {torch.ops.torch_ssam.cpu_capability()}, {kernels}")
PY
  )
  echo "check_wheel: $what"
  report=$root/build/wheel/tests-$version.log
  "${alone[@]}" -m pytest -q -n "${JOBS:-2}" -p no:cacheprovider "${without[@]}" "$@" >"$report" 2>&1 || failed=1
  grep -E '^(SKIPPED|FAILED|ERROR) ' "$report" || true
  summary+=("$what: $(tail -1 "$report")")
  cd "$root"
  [ -n "${WHEEL_ENVS:-}" ] || rm -rf "$venv"
  rm -rf "$consumer"
done
printf 'check_wheel: %s\n' "${summary[@]}"
exit "$failed"
