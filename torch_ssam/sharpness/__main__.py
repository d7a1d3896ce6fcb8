"""`python -m torch_ssam.sharpness MODULE:FACTORY FIRST SECOND`: a sharpness report of two checkpoints.

FACTORY is a function without arguments that returns (model, loss_fn, data). Tests:
tests/python/test_sharpness.py, test_command_lines.py.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from torch_ssam._common.command_line import command, in_one_line, named_function, output_folder, tqdm_bars
from torch_ssam._common.extras import need

from . import compare


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command("sharpness", "A sharpness report that sets checkpoints side by side.")
    made.add_argument("factory", help="MODULE:FUNCTION, a function that returns (model, loss_fn, data)")
    made.add_argument("checkpoints", nargs="+", help="two or more files that torch.save wrote")
    made.add_argument("--noise-std", type=float, default=0.01, help="noise of the average (default 0.01)")
    made.add_argument("--radius", type=float, default=0.05, help="ball of the worst case (default 0.05)")
    made.add_argument("--samples", type=int, default=16, help="draws of noise (default 16)")
    made.add_argument(
        "--mode", choices=("eval", "train"), default="eval", help="of dropout and BatchNorm (default eval)"
    )
    made.add_argument("--out", type=Path, help="folder for sharpness.txt, .csv and .png")
    made.add_argument("--quiet", action="store_true", help="no progress bars")
    return made


def report(given: argparse.Namespace) -> None:
    """Computes, prints, and with --out saves."""
    if given.out is not None:
        need(
            "matplotlib.figure", "sharpness", "--out, for its plot,"
        )  # now, not after everything is computed
        output_folder(given.out)
    made = named_function(given.factory)()
    if not isinstance(made, tuple | list) or len(made) != 3:
        came = f"{len(made)} members" if isinstance(made, tuple | list) else f"a {type(made).__name__}"
        raise ValueError(f"{given.factory} returned {came}; expected (model, loss_fn, data).")
    model, loss_fn, data = made
    found = compare(
        model,
        {name: name for name in given.checkpoints},
        loss_fn,
        data,
        noise_std=given.noise_std,
        radius=given.radius,
        samples=given.samples,
        mode=given.mode,
        progress=tqdm_bars("sharpness", given.quiet),
    )
    print(found, flush=True)
    if given.out is not None:
        found.save(given.out)


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser()
    given = made.parse_args(arguments)
    if len(set(given.checkpoints)) < 2:
        made.error("one checkpoint was given; expected two or more different ones")
    return in_one_line("sharpness", lambda: report(given))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does
    sys.exit(main())
