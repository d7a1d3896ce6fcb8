"""`python -m torch_ssam.compare NAME...`: SGD, SAM, S-SAM and AdamW tuned alike; writes report.html and results.csv.

Tests: tests/python/test_compare.py, test_command_lines.py.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch_ssam._common.command_line import command, in_one_line, output_folder
from torch_ssam._common.extras import need
from torch_ssam._common.progress import rich_bar

from ._compare import STAGES, Comparison, compare
from ._data import DATA
from ._methods import METHODS
from ._models import MODELS
from ._records import Store
from ._report import write_report
from ._settings import SETTINGS, Setting
from ._tables import deployment_table, main_table, overview_table, time_table
from ._verdict import verdict

#: Options that replace a field of every setting named.
FIELDS = (
    "wrong_labels",
    "folder",
    "train",
    "validation",
    "test",
    "epochs",
    "batch",
    "rates",
    "adam_rates",
    "knob_values",
    "weight_decay",
    "methods",
    "seeds",
    "robustness_seeds",
    "lr_factors",
    "epoch_factors",
)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command(
        "compare",
        "Compares SGD, SAM, S-SAM and AdamW, each tuned over a grid of one size; goes on where it was stopped.",
        epilog=f"NAME is one of {', '.join(SETTINGS)}, or all. Methods: {', '.join(METHODS)}.",
    )
    add: Callable[..., Any] = made.add_argument
    add("names", nargs="*", metavar="NAME", help="settings; none with --data and --model")
    add("--short", action="store_true", help="small forms of the settings (all if none is named)")
    add("--data", help=f"{', '.join(DATA)}, or MODULE:FUNCTION of (setting, seed) that returns Data")
    add("--model", help=f"{', '.join(MODELS)}, or MODULE:FUNCTION of (data) that returns a module")
    add("--name", help="what to call the setting of --data and --model (default data-model)")
    add(
        "--out",
        type=Path,
        default=Path("out/compare"),
        help="folder of records, report, CSV (default %(default)s)",
    )
    add("--workers", type=int, help="processes of one thread each (default: one a core)")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all")
    add("--report", action="store_true", help="run nothing, report what is recorded")
    add("--quiet", action="store_true", help="no progress bar and no tables")
    add("--folder", type=Path, help="of MNIST's four idx files, in place of Fashion-MNIST")
    add("--wrong-labels", type=float, help="share of wrong training labels")
    add("--train", type=int, help="training examples")
    add("--validation", type=int, help="validation examples")
    add("--test", type=int, help="test examples")
    add("--epochs", type=int, help="of SGD; the others have as many gradients")
    add("--batch", type=int, help="examples of a gradient")
    add("--rates", type=_numbers, help="learning rates of the grid, such as 0.03,0.1")
    add("--adam-rates", type=_numbers, help="AdamW's")
    add("--knob-values", type=int, help="values of each method's own knob in the grid, 1 to 4")
    add("--weight-decay", type=float, help="of the methods whose grid does not vary it (not of AdamW)")
    add("--methods", type=_names, help="names with commas between them")
    add("--seeds", type=int, help="runs on the test split")
    add("--robustness-seeds", type=int, help="seeds with other learning rates and epochs; 0 for none")
    add("--lr-factors", type=_numbers, help="such as 0.25,4")
    add("--epoch-factors", type=_numbers, help="such as 0.5,2")
    return made


def chosen_settings(options: argparse.Namespace) -> list[Setting]:
    """The settings that the command line asks for.

    Raises:
        ValueError, TypeError: names that are not known, options out of range.
    """
    given = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    if options.data is not None or options.model is not None:
        if options.names:
            raise ValueError("NAME and --data or --model: a named setting has both; give one or the other.")
        if options.data is None or options.model is None:
            raise ValueError("--data and --model go together.")
        parts = (part.replace(":", ".").replace("/", ".") for part in (options.data, options.model))
        made = Setting(options.name or "-".join(parts), data=options.data, model=options.model)
        settings = [made]
    else:
        if options.name is not None:
            raise ValueError("--name is for a setting of --data and --model.")
        names = options.names or (["all"] if options.short else [])
        if not names:
            raise ValueError(f"no setting was named; expected one of {', '.join(SETTINGS)}, or all.")
        unknown = [name for name in names if name not in (*SETTINGS, "all")]
        if unknown:
            raise ValueError(
                f"setting {unknown[0]!r} is not known; expected one of {', '.join(SETTINGS)}, or all."
            )
        settings = [SETTINGS[name] for name in (SETTINGS if "all" in names else dict.fromkeys(names))]
    return [replace(setting.short() if options.short else setting, **given) for setting in settings]


def run(options: argparse.Namespace) -> None:
    """Runs what is not recorded yet, prints the tables, and writes the report."""
    settings = chosen_settings(options)
    need("matplotlib.figure", "compare", "the report of a comparison")  # now, not after hours of runs
    console = _console()
    if options.report:
        comparisons = [recorded(setting, options.out) for setting in settings]
    else:
        output_folder(options.out)
        bar: Any = contextlib.nullcontext() if options.quiet else rich_bar("runs", console)
        with bar as progress:
            comparisons = compare(
                settings, out=options.out, workers=options.workers, stages=options.stages, progress=progress
            )
    for comparison in comparisons:
        if comparison.data.note:
            print(f"compare: {comparison.name}: {comparison.data.note}", file=sys.stderr)
    if not options.quiet:
        for comparison in comparisons:
            console.rule(comparison.name)
            for table in (
                main_table(comparison),
                time_table(comparison),
                deployment_table(comparison, "target"),
            ):
                if table.has_data:
                    table.show(console)
            for line in verdict(comparison):
                console.print(line, highlight=False)
        overview_table(comparisons).show(console)
    path = write_report(comparisons, options.out)
    if not options.quiet:
        console.print(f"Report: {path}; every run: {options.out / 'results.csv'}", highlight=False)


def _console() -> Any:
    rich = need("rich.console", "compare", "python -m torch_ssam.compare")
    console = rich.Console()
    return console if console.is_terminal else rich.Console(width=170)


def recorded(setting: Setting, out: Path) -> Comparison:
    """What a folder has of a setting.

    Raises: ValueError: there is no such folder.
    """
    if not out.is_dir():
        raise ValueError(
            f"{out} is no folder; expected the one that runs were recorded in (--out of the command that made them)."
        )
    return Comparison(setting, Store(out / setting.name))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    kept = f"Finished runs are recorded in {options.out}; the same command goes on"
    try:
        return in_one_line("compare", lambda: run(options), stopped=f"stopped. {kept}.")
    except BrokenProcessPool:
        print(
            f"compare: a worker process ended (out of memory?). {kept}, --workers 1 needs the least memory.",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does
    sys.exit(main())
