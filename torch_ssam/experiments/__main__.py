"""python -m torch_ssam.experiments NAME|all [--out DIR] [--quick] [--seed N]. Tests:
tests/python/test_experiments.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import NAMES, run, write_report
from ._common import need


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_ssam.experiments",
        description="Computes the paper's experiments and open questions beside their theory.",
        epilog=f"NAME is one of {', '.join(NAMES)}; 'all' runs every one and writes report.html.",
    )
    parser.add_argument("name", metavar="NAME|all", choices=[*NAMES, "all"])
    parser.add_argument(
        "--out", type=Path, default=Path("out/experiments"), help="folder of figures, tables, report"
    )
    parser.add_argument("--quick", action="store_true", help="fewer replicates and steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    names = NAMES if options.name == "all" else (options.name,)
    need("matplotlib")
    bar = need("tqdm").tqdm(names, disable=len(names) == 1, unit="experiment")
    results = {}
    for name in bar:
        bar.set_description(name)
        results[name] = run(name, quick=options.quick, seed=options.seed, out=options.out)
        bar.write(results[name].text() + "\n", file=sys.stdout)
    if options.name == "all":
        report = options.out / "report.html"
        write_report(results, report, quick=options.quick, seed=options.seed)
        print(f"Report: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
