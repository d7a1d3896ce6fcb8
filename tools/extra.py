"""Prints requirements of pyproject.toml, one a line: python tools/extra.py docs wheel

A name is an extra, or `build-system`, or `dependencies`: those of the package, without torch, which is never ours to choose.
The extra `all` names others, in whose place stands what they require.
"""

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

pyproject = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())
wanted = dict(pyproject["project"]["optional-dependencies"])
wanted["build-system"] = pyproject["build-system"]["requires"]
wanted["dependencies"] = [d for d in pyproject["project"]["dependencies"] if not d.startswith("torch")]


def requirements(name: str) -> list[str]:
    """What a name stands for, without the package itself."""
    found = []
    for line in wanted[name]:
        others = re.fullmatch(r"torch_ssam\[(.*)\]", line)
        found += [r for n in others[1].split(",") for r in requirements(n)] if others else [line]
    return found


print("\n".join(dict.fromkeys(line for name in sys.argv[1:] for line in requirements(name))))
