"""`python -m torch_ssam.experiments NAME|all`: the paper's experiments and open questions, beside their theory.

Tests: tests/python/test_experiments.py, test_command_lines.py.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from torch_ssam._common.command_line import command, in_one_line, output_folder
from torch_ssam._common.extras import need

from . import NAMES, run, write_report

#: All of the extra: what one experiment lacks is said before the first is run.
NEEDED = ("matplotlib.figure", "scipy.stats", "sklearn.datasets", "tqdm")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command(
        "experiments",
        "Computes the paper's experiments and open questions beside their theory.",
        epilog=f"NAME is one of {', '.join(NAMES)}; 'all' runs every one and writes report.html.",
    )
    made.add_argument("name", metavar="NAME|all", choices=[*NAMES, "all"], help="which to run, see below")
    made.add_argument(
        "--out",
        type=Path,
        default=Path("out/experiments"),
        help="folder of figures, tables, report (default %(default)s)",
    )
    made.add_argument("--quick", action="store_true", help="fewer replicates and steps")
    made.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    return made


def report(options: argparse.Namespace) -> None:
    """Runs, prints, and then draws and saves, one after the other."""
    for module in NEEDED:
        need(module, "experiments", "python -m torch_ssam.experiments")
    output_folder(options.out)
    names = NAMES if options.name == "all" else (options.name,)
    bar = need("tqdm", "experiments", "a progress bar").tqdm(
        names, disable=options.quiet or len(names) == 1, unit="experiment"
    )
    results = {}
    for name in bar:
        bar.set_description(name)
        results[name] = run(name, quick=options.quick, seed=options.seed)
        bar.write(results[name].text() + "\n", file=sys.stdout)
        results[name].save(options.out, name)
    if options.name == "all":
        page = options.out / "report.html"
        write_report(results, page, quick=options.quick, seed=options.seed)
        print(f"Report: {page}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return in_one_line("experiments", lambda: report(options))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does
    sys.exit(main())
