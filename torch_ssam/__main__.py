"""`python -m torch_ssam`: the commands of the package, and which version it is.

What a command does is the first line of its module, read without importing it. Tests: test_command_lines.py.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from torch_ssam import __version__
from torch_ssam._common.command_line import command


def commands() -> dict[str, str]:
    """For each command how it is called and, behind a colon, what it does."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*/__main__.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.parent.name] = text.partition("\n")[0].replace("`", "")
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    lines = []
    for line in commands().values():
        call, _, does = line.partition(": ")
        lines += [f"  {call}", f"      {does}"]
    made = command(
        "",
        "\n".join(["Stochastic Sharpness-Aware Minimization for PyTorch. Its commands:", "", *lines]),
        epilog="Each says more with --help. What they need beyond PyTorch: pip install 'torch_ssam[all]'.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--version", action="version", version=f"torch_ssam {__version__}", help="which version this is"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser()
    made.parse_args(arguments)
    made.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
