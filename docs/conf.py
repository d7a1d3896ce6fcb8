"""Sphinx configuration: `make docs` builds the site into docs/_build, warnings are errors."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from torch_ssam import __version__  # noqa: E402

project = "torch_ssam"
author = "the torch_ssam developers"
release = version = __version__
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them; the docstrings' Args say more
autodoc_inherit_docstrings = True
napoleon_google_docstring = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"torch_ssam {version}"
html_theme_options = {"navigation_with_keys": True}


def escape(app, what, name, obj, options, lines):
    """Docstrings give formulas in plain text, where |w| and w* are no markup."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...", ".. ")) and "``" not in line and ":math:" not in line:
            lines[i] = line.replace("|", r"\|").replace("w*", r"w\*")


def skip(app, what, name, obj, skip, options):
    """A NamedTuple's fields are in its docstring."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", escape)
