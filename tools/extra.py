"""Prints the requirements of extras of pyproject.toml, one a line: python tools/extra.py docs wheel"""

import sys
from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
print("\n".join(line for name in sys.argv[1:] for line in project["optional-dependencies"][name]))
