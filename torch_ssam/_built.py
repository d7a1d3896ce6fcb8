"""Whether this package has its native parts, and if not, what to do: a checkout shadows the installed package.

Python looks in the current folder first, so that in a checkout `import torch_ssam` finds the sources, though a built
copy is installed. Standard library alone: it is asked before anything native is loaded. Tests:
tests/python/test_installing.py.
"""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

LIBRARY = Path("lib") / "libtorch_ssam.so"


def _missing(package: Path) -> str | None:
    """The native part that a folder of the package lacks, in words."""
    if not (package / LIBRARY).is_file():
        return f"{LIBRARY} is missing"
    if any((package / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
        return None
    others = ", ".join(sorted(path.name for path in package.glob("_C.*so"))) or "none"
    return f"there is no _C for Python {sys.version_info[0]}.{sys.version_info[1]} ({others} found)"


def _built_elsewhere(package: Path) -> Path | None:
    """Another folder of the package that this Python would find, and that is built."""
    places = [Path(entry or ".") / package.name for entry in sys.path]
    for finder in sys.meta_path:  # editable installs have finders of their own
        try:
            spec = finder.find_spec(package.name, None)
        except (AttributeError, ImportError, ValueError):
            continue
        if spec is not None and spec.origin is not None:
            places.append(Path(spec.origin).parent)
    for place in places:
        if place.resolve() != package and (place / "__init__.py").is_file() and _missing(place) is None:
            return place.resolve()
    return None


def check_built(package: Path) -> None:
    """Raises ImportError where native parts are missing, naming the checkout, the installed copy and what to do."""
    package = package.resolve()
    missing = _missing(package)
    if missing is None:
        return
    checkout = package.parent
    if not (checkout / "CMakeLists.txt").is_file():
        raise ImportError(f"torch_ssam in {package} is not whole: {missing}. Reinstall the package.")
    installed = _built_elsewhere(package)
    if installed is None:
        raise ImportError(
            f"torch_ssam was found in a checkout that is not built, {checkout}: {missing}. Run `make build` or "
            "`pip install --no-build-isolation -e .` there; or `pip install .`, and Python from another folder."
        )
    raise ImportError(
        f"torch_ssam was found in a checkout that is not built, {checkout}: {missing}. A built copy is installed in "
        f"{installed}: to use it, run Python from another folder (and without the checkout on PYTHONPATH). "
        "To build the checkout, run `make build` there."
    )
