#!/usr/bin/env bash
# One command for a fresh machine with a GPU and a driver, without a network: what the tests and benchmarks on a GPU say.
#   tools/gpu_check.sh [--rehearse] [OUT]     OUT: build/gpu_check
#   tools/gpu_check.sh --pack                 beforehand, where there is a network
# The most telling parts come first, each with a time limit, and each is written to OUT/results.tsv as it ends (name, outcome,
# seconds, its last line), its output to OUT/NAME.log: a run that is cut short still says something. OUT/page.md is made anew
# after each part (tools/gpu_page.py); copied to docs/ it is the record. PYTHON names the interpreter, which needs torch.
# What travels: the checkout with torch_ssam/lib, built where nvcc is (libtorch_ssam_cuda.so serves every PyTorch >= 2.10
# with CUDA), and build/gpu_carry, into which --pack puts pytest, pure Python, for a machine without it; --pack weighs it all
# and fails above 64 MiB. _C is built here where this Python has none. What this machine lacks is left out and said.
# --rehearse does the same on a CPU with the emulated device of tests/ptx (make ptx-run first): that all parts start, not what
# they measure. Tests: tests/python/test_gpu_check.py.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}

pack() {
  "$python" tools/extra.py dev | grep '^pytest==' | xargs "$python" -m pip install -q --upgrade --no-compile \
    --only-binary=:all: --platform any --target build/gpu_carry "exceptiongroup>=1" "tomli>=1" || return 1
  local bytes
  bytes=$({ git ls-files -z --cached --others --exclude-standard; find torch_ssam/lib build/gpu_carry -type f -print0; } |
    du -cb --files0-from=- | tail -n 1 | cut -f 1)
  echo "$((bytes >> 20)) MiB travel: the checkout, torch_ssam/lib, build/gpu_carry"
  if [ ! -f torch_ssam/lib/libtorch_ssam_cuda.so ]; then
    echo "torch_ssam/lib/libtorch_ssam_cuda.so is not there: FORCE_CUDA=1 make build" >&2
    return 1
  elif [ "$bytes" -gt $((64 << 20)) ]; then
    echo "that is above 64 MiB: build for one architecture, CUDAARCHS=90-real" >&2
    return 1
  fi
}
[ "${1:-}" = --pack ] && { pack; exit; }

rehearse=
[ "${1:-}" = --rehearse ] && { rehearse=1; shift; }
out=${1:-build/gpu_check}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
export PYTHONPATH=$PWD
"$python" -c "import pytest" 2> /dev/null || PYTHONPATH=$PWD:$PWD/build/gpu_carry
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
: > "$out/results.tsv"

record() {  # NAME OUTCOME SECONDS TEXT
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(printf '%s' "$4" | tr '\t\n' '  ' | cut -c1-200)" | tee -a "$out/results.tsv"
  "$python" tools/gpu_page.py "$out" > "$out/page.md" || echo "tools/gpu_page.py failed"
}
part() {  # NAME LIMIT COMMAND...
  local name=$1 limit=$2 begin=$SECONDS rc=0
  shift 2
  if declare -F "$1" > /dev/null; then set -- bash -c "$1"; fi  # timeout runs programs
  timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1 || rc=$?
  case $rc in
    0) outcome=passed ;;
    124 | 137) outcome="ran out of its $limit seconds" ;;
    *) outcome="failed with $rc" ;;
  esac
  record "$name" "$outcome" $((SECONDS - begin)) "$(tail -n 1 "$out/$name.log")"
  return $rc
}
left_out() { record "$1" "left out" 0 "$2"; }

# --- What is here, and what has to be built here.
describe() {
  "$python" -c "import sys, torch; print('python', sys.version.split()[0], 'torch', torch.__version__, 'cuda', torch.version.cuda)"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "no nvidia-smi"
  nvcc --version 2> /dev/null | tail -n 2 | head -n 1 || echo "no nvcc"
  "$python" -c "import pytest, sys; print('pytest', pytest.__version__, 'of', pytest.__file__)" 2> /dev/null || echo "no pytest"
  "$python" -c "import numpy; print('numpy', numpy.__version__)" 2> /dev/null || echo "no numpy"
  "$python" -c "import torch; print('device', torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'none')"
}
# Theory and simulator for this Python, with the pybind11 that torch carries: one plain variant, no CMake, no network.
build_c() {
  "$python" - > "$out/flags" << 'END'
import importlib.util, sysconfig
torch = importlib.util.find_spec("torch").submodule_search_locations[0]
print(f"-isystem {torch}/include -isystem {sysconfig.get_paths()['include']}")
END
  local to="torch_ssam/_C$("$python" -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")"
  # shellcheck disable=SC2046  # the flags are words
  g++ -std=c++20 -O2 -DNDEBUG -fPIC -shared -fvisibility=hidden -ffp-contract=off -fno-math-errno -Icsrc \
    -DTORCH_SSAM_VARIANT=plain $(cat "$out/flags") csrc/python/*.cpp csrc/theory/*.cpp -o "$to.new" && mv "$to.new" "$to"
}
importable() { "$python" -c "import torch_ssam, torch; from torch_ssam.ops import library; assert not library.cuda_load_error, library.cuda_load_error"; }
export -f describe build_c importable
export python out
part describe 120 describe
if ! part import 60 importable && [ ! -f "torch_ssam/_C$("$python" -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")" ]; then
  part build_C 300 build_c && part import 60 importable
fi

# --- Tests.
pytest=("$python" -m pytest -q -p no:cacheprovider --maxfail=20)
if [ -n "$rehearse" ]; then
  export TORCH_SSAM_EMULATED_CUDA=${TORCH_SSAM_EMULATED_CUDA:-$PWD/build/cpp/ptx/libtorch_ssam_cuda.so}
else
  export FAIL_WITHOUT_CUDA=1
fi
if "$python" -c "import pytest, numpy" 2> /dev/null; then
  part bits 200 "${pytest[@]}" tests/python/test_cuda.py
  part registration 60 "${pytest[@]}" tests/python/test_cuda_registration.py
else
  left_out bits "no pytest or no numpy here; build/gpu_carry (--pack) brings pytest"
  left_out registration "no pytest or no numpy here"
fi

# --- Speed.
if [ -n "$rehearse" ]; then
  part speed 120 "$python" benchmarks/cuda_step.py --rehearse --rounds 1
else
  part speed 240 "$python" benchmarks/cuda_step.py --rounds 5
fi

# --- Several processes on one device.
part ddp_fsdp2 90 "$python" tools/gpu_ranks.py ${rehearse:+--cpu}

# --- compute-sanitizer over launches of every kind.
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2> /dev/null | head -n 1)
few="misaligned and (adamw or scaled or restored or norms) or diagonal and (65, 100) or projection"
for tool in memcheck racecheck initcheck; do
  if [ -n "$rehearse" ]; then
    left_out "$tool" "a rehearsal; shadow memory of tests/ptx looks for the same"
  elif [ -z "$sanitizer" ]; then
    left_out "$tool" "no compute-sanitizer here"
  elif ! "$sanitizer" --version > "$out/$tool.log" 2>&1; then
    left_out "$tool" "compute-sanitizer does not run here: $(tail -n 1 "$out/$tool.log")"
  else
    part "$tool" 120 "$sanitizer" --tool "$tool" --error-exitcode 99 "${pytest[@]}" tests/python/test_cuda.py -k "$few"
  fi
done
awk -F'\t' '$2 ~ /^(failed|ran out)/ { bad = 1 } END { exit bad }' "$out/results.tsv"
