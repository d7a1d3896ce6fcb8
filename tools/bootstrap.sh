#!/usr/bin/env bash
# Sets up ./.venv: an active PyTorch if there is one, else a pinned one, and pyproject.toml's dev, demo, sharpness
# and frameworks extras.
# What only root can install (a compiler, GoogleTest, the Fashion-MNIST images) is installed where we are root; else the
# command to run is printed. Runs again only when pyproject.toml or this file changes. Used by the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=${TORCH:-torch==2.13.0}
PYTHON=${PYTHON:-python3}
stamp=.venv/.bootstrapped
signature="$(cat pyproject.toml tools/bootstrap.sh tools/extra.py | cksum) $TORCH"

system_packages() {
  local missing=()
  command -v g++ >/dev/null || missing+=(g++)
  command -v make >/dev/null || missing+=(make)
  [ -f /usr/include/gtest/gtest.h ] || missing+=(libgtest-dev)
  [ -f /usr/include/gmock/gmock.h ] || missing+=(libgmock-dev)
  [ -f /usr/include/benchmark/benchmark.h ] || missing+=(libbenchmark-dev)
  [ -f /usr/include/zlib.h ] || missing+=(zlib1g-dev)
  command -v valgrind >/dev/null || missing+=(valgrind)
  if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "bootstrap: installing ${missing[*]}"
      apt-get update -qq
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
    else
      echo "bootstrap: missing system packages. Run this, then try again:"
      echo "    sudo apt-get install -y ${missing[*]}"
      exit 1
    fi
  fi
  # Images for the demo: wanted, not needed.
  if [ ! -d /usr/share/datasets/fashion-mnist ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq dataset-fashion-mnist >/dev/null) 2>/dev/null ||
        echo "bootstrap: Debian's dataset-fashion-mnist could not be installed; the demo will use scikit-learn's digits."
    else
      echo "bootstrap: for Fashion-MNIST in the demo run: sudo apt-get install -y dataset-fashion-mnist"
    fi
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

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$signature" ]; then
  exit 0
fi
system_packages
if [ ! -x .venv/bin/python ]; then
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
.venv/bin/python tools/extra.py build-system dev demo sharpness frameworks dependencies >.venv/requirements.txt
.venv/bin/python -m pip install -q -c "$constraints" -r .venv/requirements.txt
rm -f "$constraints"
# BackPACK (of curvlinops) brings a torchvision that loads under one build of PyTorch only; where it does not, Lightning
# and transformers fail on it, and nothing here uses it.
if ! .venv/bin/python -c 'import torchvision' 2>/dev/null; then
  .venv/bin/python -m pip uninstall -q -y torchvision 2>/dev/null || true
fi
echo "$signature" >"$stamp"
