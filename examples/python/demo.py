"""The main job on real data: python examples/python/demo.py, or `make demo`. About 2 minutes on 2 cores.

(a) diabetes.py: S-SAM on a diagonal linear network finds the shrinkage-thresholding that theory predicts.
(b) images.py: SGD, S-SAM and SAM on a small convolutional network with wrong labels, tuned alike.
(c) deployment.py: weights of SGD and of S-SAM, rounded to few bits and with noise on them.
Writes demo.json (all numbers), demo.md (the tables), demo_diabetes.png, demo_images.png and demo_deployment.png.
Tests: tests/python/test_demo.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import deployment
import diabetes
import images
from data import DataError, load_images
from plots import plot_diabetes, plot_images
from report import balance_table, coefficient_table, grid_table, image_table
from rich.console import Console
from runner import Runner

from torch_ssam.compare import cores, deployment_figure, deployment_table


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; expected 1 or more")
    return value


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under half a minute: less data, fewer epochs")
    parser.add_argument("--seeds", type=_count, help="seeds of the image part (default 5)")
    parser.add_argument("--epochs", type=_count, help="epochs of the image part")
    parser.add_argument("--data", type=Path, help="folder with MNIST's four idx files, plain or .gz")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for results (default out)")
    parser.add_argument(
        "--threads",
        type=_count,
        default=cores(),
        help="runs at a time, one core each (default: all cores)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    start = time.perf_counter()
    regression, classification = diabetes.Settings(), images.setting(options.data)
    deployed = deployment.setting(options.data)
    if options.quick:
        regression, classification = regression.quick(), images.quick(classification)
        deployed = deployment.quick(deployed)
    given = {name: value for name in ("seeds", "epochs") if (value := getattr(options, name)) is not None}
    classification = replace(classification, **given)
    try:
        name = load_images(options.data).name
        options.out.mkdir(parents=True, exist_ok=True)
    except (DataError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    if options.data is None and name != "Fashion-MNIST":
        console.print(f"No Fashion-MNIST here (Debian: apt-get install dataset-fashion-mnist): using {name}.")
    with Runner(options.threads, console) as runner:
        fitted = diabetes.run(regression, runner.run)
    compared = images.run(classification, options.out, options.threads, console)
    left = deployment.run(deployed, options.out, options.threads, console)
    tables = [coefficient_table(fitted), balance_table(fitted), grid_table(compared), image_table(compared)]
    tables.append(deployment_table(left))
    for table in tables:
        table.show(console)
    (options.out / "demo.md").write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
    numbers = {
        "diabetes": fitted,
        "images": compared,
        "deployment": deployment.numbers(left),
        "seconds": time.perf_counter() - start,
    }
    (options.out / "demo.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    plot_diabetes(fitted, options.out / "demo_diabetes.png")
    plot_images(compared, options.out / "demo_images.png")
    deployment_figure(left).savefig(options.out / "demo_deployment.png", dpi=110)
    console.print(
        f"{numbers['seconds']:.0f} seconds. Tables, numbers and plots are in {options.out}/.", highlight=False
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
