"""Sphinx configuration: `make docs` builds the site into docs/_build/html, warnings are errors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import latex2mathml.converter
from docutils import nodes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from torch_ssam import __version__  # noqa: E402

project = "torch_ssam"
author = "the torch_ssam developers"
release = version = __version__
copyright = author

extensions = [
    "myst_nb",  # myst_parser, and the tutorials run
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "matplotlib.sphinxext.plot_directive",
    "breathe",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
source_suffix = {".md": "myst-nb"}
exclude_patterns = ["_build"]

# Pages with a kernelspec at their head (tutorials/) are run, in a folder of their own; a cell that fails fails the site.
# Unchanged ones are taken from docs/_build/jupyter_cache.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "docs" / "_build" / "jupyter_cache")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell, on a busy machine
nb_merge_streams = True
# What the kernels see: this checkout, and matplotlib's default for notebooks.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ.pop("MPLBACKEND", None)

plot_formats = [("png", 160)]
plot_html_show_formats = plot_html_show_source_link = False
plot_basedir = str(ROOT / "docs")

breathe_projects = {"torch_ssam": str(ROOT / "docs" / "_build" / "doxygen" / "xml")}
breathe_default_project = "torch_ssam"
breathe_default_members = ("members",)
breathe_show_include = False  # a program includes torch_ssam/torch_ssam.h or torch_ssam/theory.h
suppress_warnings = [
    "duplicate_declaration.cpp"
]  # an option's name is that of its member and of its overloads
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them; the docstrings' Args say more
autodoc_inherit_docstrings = True
napoleon_google_docstring = True
napoleon_use_rtype = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"torch_ssam {version}"
html_theme_options = {"navigation_with_keys": True}


def hide_colons(app, what, name, obj, options, lines):
    """Keeps napoleon from reading what stands before the colon of an attribute's text as its type."""
    if what == "attribute":
        lines[:] = [line.replace(": ", "\ue000 ") for line in lines]


def escape(app, what, name, obj, options, lines):
    """Docstrings give formulas in plain text, where |w| and w* are no markup."""
    for i, line in enumerate(lines):
        lines[i] = line = line.replace("\ue000", ":")
        if not line.lstrip().startswith((">>>", "...", ".. ")) and "``" not in line and ":math:" not in line:
            lines[i] = line.replace("|", r"\|").replace("w*", r"w\*")


def skip(app, what, name, obj, skip, options):
    """A NamedTuple's fields are in its docstring."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def run_doxygen(app):
    """The C++ reference is made of what doxygen reads out of the headers."""
    if shutil.which("doxygen") is None:
        raise SystemExit("docs: doxygen is missing. Run: sudo apt-get install -y doxygen")
    (ROOT / "docs" / "_build").mkdir(exist_ok=True)
    subprocess.run(["doxygen", "-q", "Doxyfile"], cwd=ROOT / "docs", check=True)
    options = subprocess.run(
        [sys.executable, ROOT / "tools" / "cpp_options.py"], check=True, capture_output=True, text=True
    )
    (ROOT / "docs" / "_build" / "cpp_options.md").write_text(options.stdout)


def as_mathml(self, node, display):
    """Formulas as MathML, which browsers draw themselves: nothing is loaded from elsewhere."""
    # both bars of one height
    tex = node.astext().replace(r"\lvert", r"\left|").replace(r"\rvert", r"\right|")
    formula = latex2mathml.converter.convert(tex, display=display)
    self.body.append(f'<div class="formula">{formula}</div>' if display == "block" else formula)
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: as_mathml(self, node, "inline"), None),
        (lambda self, node: as_mathml(self, node, "block"), None),
    )
    app.connect("builder-inited", run_doxygen)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", hide_colons, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", escape)
