"""`python -m torch_ssam.robustness MODULE:FUNCTION [CHECKPOINT ...]`: what is left of models when weights are disturbed.

Tests: tests/python/test_robustness_report.py, test_command_lines.py.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from torch_ssam._common.command_line import command, in_one_line, named_function, output_folder, tqdm_bars
from torch_ssam._common.extras import need

from ._compare import Comparison, compare
from ._contexts import KINDS, RELATIVE_TO
from ._evaluate import accuracy
from ._measure import measure
from ._points import FIRST_AND_LAST, STATISTICS
from ._quantizers import GRIDS, STEPS
from ._result import Robustness

EPILOG = """FUNCTION takes no arguments and returns (model, data), (model, data, metric) or (model, data, metric, calibration):
  model        a torch.nn.Module
  data         batches of (inputs, targets), such as a DataLoader without shuffling or augmentation
  metric       function of (outputs, targets) that gives one number for a batch; default: accuracy in percent
  calibration  training batches for --statistics anew

Without CHECKPOINT the model is measured as FUNCTION returns it; with several they stand side by side, under the same
noise and flips. example.py:

    def make():
        model = torch.nn.Sequential(...)
        return model, torch.utils.data.DataLoader(test_set, 500)

  python -m torch_ssam.robustness example:make sgd.pt ssam.pt --bits 4,3,2 --noise 0.1,0.2 --out out/robustness
  python -m torch_ssam.robustness example:make --bits 4 --noise none --flips none --step mse --skip head"""


def numbers(text: str) -> tuple[float, ...]:
    return () if text == "none" else tuple(float(part) for part in text.split(",") if part)


def whole_numbers(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(part) for part in text.split(",") if part)


def per(text: str) -> str | int:
    return int(text) if text.lstrip("-").isdigit() else text


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command(
        "robustness",
        "What is left of a model when its weights are rounded to few bits, noisy, or hit by bit flips.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Callable[..., Any] = made.add_argument
    add("function", metavar="MODULE:FUNCTION", help="what to measure, see below")
    add(
        "checkpoints",
        nargs="*",
        metavar="CHECKPOINT",
        help="files that torch.save wrote, NAME=FILE for a name of its own",
    )
    add(
        "--bits",
        type=whole_numbers,
        metavar="B,B",
        help="bits of rounded weights, 2 to 16, or none (default 8,4,3,2)",
    )
    add(
        "--noise",
        type=numbers,
        metavar="S,S",
        help="standard deviations, or none (default 0.05,0.1,0.2,0.3)",
    )
    add(
        "--flips",
        type=numbers,
        metavar="P,P",
        help="probabilities that a bit flips, or none (default 0.001,0.01)",
    )
    add("--draws", type=int, metavar="N", help="chips for each noise and each rate of flips (default 8)")
    add(
        "--precision",
        type=float,
        metavar="H",
        help="half-width to reach, in units of the metric (default: --draws alone)",
    )
    add("--max-draws", type=int, metavar="N", help="most chips that --precision may take (default 1000)")
    add(
        "--per",
        type=per,
        metavar="WHAT",
        help="what shares a step: filter, tensor or a number of weights (default filter)",
    )
    add("--grid", choices=GRIDS, help="levels: 2^b - 1, 2^b, or 2^b with a zero point (default narrow)")
    add("--step", choices=STEPS, help="step by the range, or by the squared error (default absmax)")
    add(
        "--relative-to",
        choices=[name or "none" for name in RELATIVE_TO],
        help="unit of noise (default filter)",
    )
    add("--kind", choices=KINDS, help="noise once a chip, or anew in each forward pass (default programming)")
    add("--flip-bits", type=int, metavar="B", help="bits of a stored weight (default 8)")
    add(
        "--activation-bits",
        type=int,
        metavar="B",
        help="inputs of layers, where weights are rounded (default: not)",
    )
    add("--statistics", choices=(*STATISTICS, "both"), help="of BatchNorm (default as_trained)")
    add(
        "--first-and-last",
        choices=(*FIRST_AND_LAST, "both"),
        help="the first and the last layer (default in)",
    )
    add(
        "--skip",
        action="append",
        metavar="PATTERN",
        help="names of layers or weights that stay; may be repeated",
    )
    add("--fold", action="store_true", help="fold BatchNorm into the layers before it first")
    add("--seed", type=int, metavar="N", help="of noise and flips (default 0)")
    add("--out", type=Path, metavar="FOLDER", help="folder for robustness.html, .txt, .png and .json")
    add("--quiet", action="store_true", help="no progress bars")
    return made


#: Options that are measure's.
OPTIONS = (
    *(
        "bits",
        "noise",
        "flips",
        "draws",
        "precision",
        "max_draws",
        "per",
        "grid",
        "step",
        "relative_to",
        "kind",
    ),
    *("flip_bits", "activation_bits", "statistics", "first_and_last", "skip", "fold", "seed"),
)


def _made(name: str) -> tuple[Any, ...]:
    """What the user's function returns: model, data, metric, calibration."""
    result = named_function(name)()
    if not isinstance(result, tuple | list) or not 2 <= len(result) <= 4:
        came = f"{len(result)} members" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
        raise ValueError(
            f"{name} returned {came}; expected (model, data), (model, data, metric) or (model, data, metric, calibration)."
        )
    if not isinstance(result[0], nn.Module):
        raise TypeError(
            f"{name} returned a {type(result[0]).__name__} first; expected the model, a torch.nn.Module."
        )
    model, data, metric, calibration = [*result, None, None][:4]
    return model, data, accuracy if metric is None else metric, calibration


def _named(checkpoints: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for given in checkpoints:
        name, equals, file = given.partition("=")
        if not equals or Path(given).is_file():
            name, file = given, given
        if not name or not file or name in named:
            raise ValueError(f"checkpoint {given!r}: expected FILE or NAME=FILE, each name once.")
        named[name] = file
    return named


def report(given: argparse.Namespace) -> None:
    """Measures, prints, and with --out saves."""
    options = {name: getattr(given, name) for name in OPTIONS if getattr(given, name) not in (None, False)}
    if options.get("relative_to") == "none":
        options["relative_to"] = None
    if given.out is not None:
        need(
            "matplotlib.figure", "robustness", "--out, for its plot,"
        )  # now, not after everything is measured
        output_folder(given.out)
    checkpoints = _named(given.checkpoints)
    model, data, metric, calibration = _made(given.function)
    options |= {"calibration": calibration, "progress": tqdm_bars("robustness", given.quiet)}
    found: Robustness | Comparison
    if checkpoints:
        found = compare(checkpoints, data, metric, model=model, **options)
        if len(checkpoints) == 1:
            (found,) = found.results.values()
    else:
        found = measure(model, data, metric, **options)
    print(found, flush=True)
    if given.out is not None:
        found.save(given.out)
        print(f"Report: {given.out / 'robustness.html'}")


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return in_one_line("robustness", lambda: report(given))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does
    sys.exit(main())
