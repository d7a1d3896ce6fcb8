#!/usr/bin/env bash
# Sets up what a target of the Makefile uses, and asks for nothing else: tools/bootstrap.sh compiler tests
#   (always)  ./.venv: an active PyTorch if there is one, else a pinned one, and pyproject.toml's dev, all and frameworks
#             extras; again only when pyproject.toml or this file changes
#   compiler  a C++ compiler and Python's headers        tests    GoogleTest, GoogleMock and zlib
#   valgrind, doxygen   the program of that name         images   Fashion-MNIST, wanted, not needed
# What only root can install is installed where we are root; else the command to run is printed. `--missing` before the
# names prints the missing packages and does nothing. Tests: tests/python/test_bootstrap.py.
set -euo pipefail
case $0 in */*) cd "${0%/*}/.." ;; *) cd .. ;; esac

TORCH=${TORCH:-torch==2.13.0}
PYTHON=${PYTHON:-python3}
SYSROOT=${SYSROOT:-} # for the tests: where system headers are looked for
stamp=.venv/.bootstrapped

program() { command -v "$1" >/dev/null; }

# The packages, by Debian's names, that are missing of those that the names given stand for.
missing_packages() {
  local need missing=() python=$PYTHON include
  [ ! -x .venv/bin/python ] || python=.venv/bin/python
  for need in "$@"; do
    case $need in
      compiler)
        program "${CXX:-c++}" || program g++ || program clang++ || missing+=(g++)
        [ -x .venv/bin/python ] || "$python" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
        include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
        [ -f "$SYSROOT$include/Python.h" ] || missing+=(python3-dev)
        ;;
      tests)
        [ -f "$SYSROOT/usr/include/gtest/gtest.h" ] || missing+=(libgtest-dev)
        [ -f "$SYSROOT/usr/include/gmock/gmock.h" ] || missing+=(libgmock-dev)
        [ -f "$SYSROOT/usr/include/zlib.h" ] || missing+=(zlib1g-dev)
        ;;
      valgrind | doxygen) program "$need" || missing+=("$need") ;;
      images) ;;
      *)
        echo "bootstrap: $need is not known; expected compiler, tests, valgrind, doxygen or images." >&2
        exit 2
        ;;
    esac
  done
  echo "${missing[*]}"
}

install_packages() {
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

may_install() { [ "$(id -u)" = 0 ] && program apt-get; }

system_packages() {
  local missing
  missing=$(missing_packages "$@")
  if [ -n "$missing" ]; then
    if may_install; then
      echo "bootstrap: installing $missing"
      # shellcheck disable=SC2086
      install_packages $missing
    else
      echo "bootstrap: missing system packages. Run this (or install what they are called elsewhere), then try again:"
      echo "    sudo apt-get install -y $missing"
      exit 1
    fi
  fi
  case " $* " in *" images "*) images ;; esac
}

images() {
  [ ! -d /usr/share/datasets/fashion-mnist ] || return 0
  if may_install; then
    install_packages dataset-fashion-mnist 2>/dev/null ||
      echo "bootstrap: Debian's dataset-fashion-mnist could not be installed; scikit-learn's digits take its place."
  else
    echo "bootstrap: for Fashion-MNIST in the place of scikit-learn's digits: sudo apt-get install -y dataset-fashion-mnist"
  fi
}

# An active PyTorch (>= 2.10) is used through a .pth file rather than installed again.
active_torch() {
  "$PYTHON" - <<'PY' 2>/dev/null || true
import importlib.metadata as m, importlib.util as u, pathlib
version = tuple(int(part) for part in m.version("torch").split("+")[0].split(".")[:2])
if version >= (2, 10):
    print(pathlib.Path(u.find_spec("torch").origin).parent.parent)
PY
}

virtual_environment() {
  local signature site pin constraints
  signature="$(cat pyproject.toml tools/bootstrap.sh tools/extra.py | cksum) $TORCH"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$signature" ]; then
    return 0
  fi
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # none yet, or stopped while it was made
    "$PYTHON" -m venv .venv
  fi
  site=$(active_torch)
  if [ -n "$site" ] && [ "$site" != "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" ]; then
    echo "bootstrap: using the active PyTorch"
    echo "$site" >"$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/active_torch.pth"
  elif ! .venv/bin/python -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
    echo "bootstrap: installing $TORCH"
    .venv/bin/python -m pip install -q "$TORCH"
  fi
  echo "bootstrap: installing the tools pinned in pyproject.toml"
  # The torch that is there, named exactly, so that no package can bring another.
  pin=$(.venv/bin/python -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))')
  constraints=$(mktemp)
  echo "$pin" >"$constraints"
  .venv/bin/python tools/extra.py build-system dev all frameworks dependencies >.venv/requirements.txt
  .venv/bin/python -m pip install -q -c "$constraints" -r .venv/requirements.txt
  rm -f "$constraints"
  # BackPACK (of curvlinops) brings a torchvision that loads under one build of PyTorch only; where it does not, Lightning
  # and transformers fail on it, and nothing here uses it.
  if ! .venv/bin/python -c 'import torchvision' 2>/dev/null; then
    .venv/bin/python -m pip uninstall -q -y torchvision 2>/dev/null || true
  fi
  echo "$signature" >"$stamp"
}

if [ "${1:-}" = --missing ]; then
  missing_packages "${@:2}"
  exit
fi
if program flock; then # `make -j` sets up once
  exec 9<tools/bootstrap.sh
  flock 9
fi
system_packages "$@"
virtual_environment
