#!/usr/bin/env bash
# The noise on trial (docs/noise.md): the laws over 10^9 values, test suites on the raw words, and the same bits from
# clang and on 64-bit Arm. `make trial` runs everything; single parts by name:
#   tools/noise_trial.sh [law] [suites] [clang] [aarch64]
# COUNT (1e9) is the number of values of each law; DIEHARDER_ORDERS (elements training) the orders for dieharder, which
# takes an hour each on an idle processor; CRUSH (small) the TestU01 battery: small, crush or big. Debian has no TestU01:
# set TESTU01 to the folder that holds its headers and libtestu01.a; without it that part says so, and the command ends
# with exit code 1.
set -euo pipefail
cd "$(dirname "$0")/.."
parts=${*:-law suites clang aarch64}
jobs=${JOBS:-$(nproc)}
out=build/trial
# csrc/math, csrc/theory and the inner loops, with their tests. The rest of the tests are other targets, not built here.
portable="noise_bits noise_trial test_math test_storage test_kernels test_theory test_simulate test_trial_statistics"
failed=()

# Packages named here are installed where we are root; else the command to run is printed.
need() {
  local missing=() pair
  for pair in "$@"; do [ -e "${pair#*=}" ] || missing+=("${pair%%=*}"); done
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "noise_trial: missing system packages. Run this, then try again:"
    echo "    sudo apt-get install -y ${missing[*]}"
    exit 1
  fi
}

# build FOLDER TARGETS [cmake options]: what needs no PyTorch.
build() {
  local folder=$1 targets=$2
  shift 2
  mkdir -p build
  # shellcheck disable=SC2086
  { cmake -S . -B "build/$folder" -G Ninja -DTORCH_SSAM_WITH_TORCH=OFF -DTORCH_SSAM_BUILD_TESTS=ON "$@" &&
    cmake --build "build/$folder" --parallel "$jobs" --target $targets; } >"build/$folder.log" 2>&1 ||
    { tail -40 "build/$folder.log"; exit 1; }
}

# check NAME COMMAND...: the command's output goes to a file; its exit code counts.
check() {
  local name=$1
  shift
  if "$@" >"$out/$name.txt" 2>&1; then echo "passed: $name"; else
    failed+=("$name")
    echo "FAILED: $name, see $out/$name.txt"
  fi
}

law() {
  build trial-gcc noise_trial
  check law build/trial-gcc/noise_trial --count "${COUNT:-1e9}"
  tail -3 "$out/law.txt"
  check law-finds-defects build/trial-gcc/noise_trial --spoiled --count 1e7
}

# dieharder's exit code says nothing; a FAILED test (p below 10^-6, or above 1 - 10^-6) does.
dieharder_on() {
  "$1" "$2" | dieharder -a -g 200
}
suites() {
  need dieharder=/usr/bin/dieharder
  build trial-gcc "noise_words $([ -z "${TESTU01:-}" ] || echo noise_crush)" \
    ${TESTU01:+-DTORCH_SSAM_TESTU01_INCLUDE=$TESTU01 -DTORCH_SSAM_TESTU01_LIBRARY=$TESTU01/libtestu01.a}
  if [ -n "${TESTU01:-}" ]; then
    for order in elements training draws places samples seeds; do
      check "crush-$order" build/trial-gcc/noise_crush "${CRUSH:-small}" "$order"
    done
    check crush-elements-reversed build/trial-gcc/noise_crush "${CRUSH:-small}" elements --reversed
  else
    failed+=(testu01)
    echo "FAILED: testu01 did not run: TESTU01 is not set to the folder with its headers and libtestu01.a"
  fi
  for order in ${DIEHARDER_ORDERS:-elements training}; do
    check "dieharder-$order" dieharder_on build/trial-gcc/noise_words "$order"
    if grep -q FAILED "$out/dieharder-$order.txt" || ! grep -q PASSED "$out/dieharder-$order.txt"; then
      failed+=("dieharder-$order")
      grep FAILED "$out/dieharder-$order.txt" || echo "FAILED: dieharder-$order has no result"
    fi
  done
}

clang() {
  need clang=/usr/bin/clang++ libgtest-dev=/usr/include/gtest/gtest.h
  build trial-clang "$portable" -DCMAKE_CXX_COMPILER=clang++
  check clang ctest --test-dir build/trial-clang --exclude-regex NOT_BUILT --output-on-failure
}

aarch64() {
  need g++-aarch64-linux-gnu=/usr/bin/aarch64-linux-gnu-g++ qemu-user=/usr/bin/qemu-aarch64 \
    googletest=/usr/src/googletest/CMakeLists.txt
  build trial-aarch64 "$portable" -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
  check aarch64 ctest --test-dir build/trial-aarch64 --exclude-regex NOT_BUILT --output-on-failure
}

mkdir -p "$out"
for program in g++ cmake ninja; do
  command -v "$program" >/dev/null || { echo "noise_trial: no $program; \`make trial\` sets itself up"; exit 1; }
done
for part in $parts; do
  case $part in
    law | suites | clang | aarch64) "$part" ;;
    *) echo "noise_trial: '$part' is none of law, suites, clang, aarch64"; exit 2 ;;
  esac
done
if [ "${#failed[@]}" -gt 0 ]; then
  echo "noise_trial: failed: ${failed[*]}"
  exit 1
fi
echo "noise_trial: all passed; the reports are in $out"
