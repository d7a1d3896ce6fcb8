#!/usr/bin/env bash
# The long form of `make ptx-run`: more random calls, other orders of threads, special values, junk in registers and shared
# memory, sm_90's and sm_100's PTX, shadow memory, mutants.   run_long.sh BUILD [JOBS [PART]]
# BUILD has ptx_walks, ptx_walks_90, ptx_walks_100 and ptx_walks_shadow built and the short form run (make ptx-run-long).
# A line for each run, at its end, with the seconds it took; the first failure is printed whole and ends it. PART, a regular
# expression, chooses runs: 'walks_90', 'special', 'mutants'.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$1"
jobs=${2:-$(nproc)}
part=${3:-.}
run() {  # PROGRAM SETTINGS...
  local program=$1
  shift
  local name="$program $*" log begin=$SECONDS
  log=ptx/long_$(printf '%s' "$name" | tr -c 'A-Za-z0-9\n' _).log
  if ! env "${@/#/TORCH_SSAM_PTX_}" "./$program" --gtest_filter='*Cuda*' --gtest_brief=1 > "$log" 2>&1; then
    tail -n 40 "$log"
    echo "failed: $name"
    return 255  # no more runs
  fi
  echo "$name: $(grep -E 'PASSED' "$log") $((SECONDS - begin)) s"
}
export -f run
{ grep -E "$part" || true; } << 'END' | xargs -r -P "$jobs" -L 1 bash -c 'run "$@"' _
ptx_walks_shadow CALLS=3
ptx_walks_shadow CALLS=3 ORDER=shuffle:3
ptx_walks CALLS=100 SEED=11
ptx_walks CALLS=40 SEED=12 ORDER=reverse
ptx_walks CALLS=40 SEED=13 ORDER=shuffle:7
ptx_walks CALLS=40 SEED=14 VALUES=special
ptx_walks CALLS=10 JUNK=0
ptx_walks CALLS=10 JUNK=0xffffffffffffffff
ptx_walks CALLS=10 JUNK=0x3f8000003f800000 ORDER=shuffle:5
ptx_walks_90 CALLS=40 SEED=15
ptx_walks_90 CALLS=20 ORDER=shuffle:2 VALUES=special
ptx_walks_100 CALLS=40 SEED=16
ptx_walks_100 CALLS=20 ORDER=shuffle:3
ptx_walks_100 CALLS=20 VALUES=special JUNK=0x5a5a5a5a5a5a5a5a
END
[[ mutants =~ $part ]] || exit 0
rm -f ptx/mutants.txt
cmake --build . --parallel "$jobs" --target ptx_walks_mutants > ptx/mutants_build.log 2>&1 || { tail -n 30 ptx/mutants_build.log; exit 1; }
TORCH_SSAM_PTX_CALLS=4 "${PYTHON:-python3}" -u "$here/mutate.py" ./ptx_walks_mutants --tests ptx/tests.log --sources ptx/ptx_mutants_*.cpp \
  --jobs "$jobs" --out ptx/mutants.txt
