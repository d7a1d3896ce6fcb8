"""`python -m torch_ssam.noise MODULE:FUNCTION [CHECKPOINT]`: the noise_std that changes a model's outputs by a target.

The command of `suggest_noise_std`, which lies above this room, beside the measures. Tests: test_suggest.py,
test_command_lines.py.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from torch_ssam._common.checkpoints import LoadedModel, read_checkpoint
from torch_ssam._common.command_line import command, in_one_line, named_function, output_folder
from torch_ssam._common.extras import need
from torch_ssam.noise.options import DISTRIBUTIONS, SCALES
from torch_ssam.noise.output_change import MEASURES
from torch_ssam.suggest import suggest_noise_std

EPILOG = """FUNCTION takes no arguments and returns (model, batches):
  model    a torch.nn.Module
  batches  inputs, or pairs whose first part is the input, such as a DataLoader

Without CHECKPOINT the model is asked as FUNCTION returns it. example.py:

    def make():
        model = torch.nn.Sequential(...)
        return model, torch.utils.data.DataLoader(train_set, 100)

  python -m torch_ssam.noise example:make
  python -m torch_ssam.noise example:make trained.pt --scale filter --target 0.02 --out out/noise"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command(
        "noise",
        "The noise_std at which noise on the weights changes what a model says by a target.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Callable[..., Any] = made.add_argument
    add("function", metavar="MODULE:FUNCTION", help="what to ask, see below")
    add("checkpoint", nargs="?", metavar="CHECKPOINT", help="file that torch.save wrote")
    add("--target", type=float, default=0.05, metavar="T", help="change of the outputs (default 0.05)")
    add(
        "--measure",
        choices=tuple(MEASURES),
        default="kl",
        help="of the change: kl of predicted classes in nats, mse over the variance of outputs (default kl)",
    )
    scales = tuple(name for name in SCALES if name != "fisher")
    add("--scale", choices=scales, default="isotropic", help="unit of noise_std (default isotropic)")
    add("--distribution", choices=DISTRIBUTIONS, default="gaussian", help="of the noise (default gaussian)")
    add("--draws", type=int, default=8, metavar="N", help="draws of noise (default 8)")
    add("--max-batches", type=int, default=8, metavar="N", help="most batches that are read (default 8)")
    add(
        "--mode",
        choices=("train", "eval"),
        default="train",
        help="of BatchNorm and dropout (default train, as the noise of training meets them)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the noise (default 0)")
    add("--out", type=Path, metavar="FOLDER", help="folder for noise.txt, .csv and .png")
    add("--quiet", action="store_true", help="the number alone")
    return made


def report(given: argparse.Namespace) -> None:
    """Asks, prints, and with --out saves."""
    if given.out is not None:
        need("matplotlib.figure", "noise", "--out, for its plot,")  # now, not after everything is computed
        output_folder(given.out)
    made = named_function(given.function)()
    if not isinstance(made, tuple | list) or len(made) != 2:
        came = f"{len(made)} members" if isinstance(made, tuple | list) else f"a {type(made).__name__}"
        raise ValueError(f"{given.function} returned {came}; expected (model, batches).")
    model, batches = made
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{given.function} returned a {type(model).__name__} first; expected the model, a torch.nn.Module."
        )
    model.train(given.mode == "train")
    state = None if given.checkpoint is None else read_checkpoint(given.checkpoint, given.checkpoint)
    with LoadedModel(model, str(given.checkpoint), state):
        found = suggest_noise_std(
            model,
            batches,
            target=given.target,
            measure=given.measure,
            scale=given.scale,
            distribution=given.distribution,
            draws=given.draws,
            max_batches=given.max_batches,
            seed=given.seed,
        )
    print(f"{found.noise_std:.3g}" if given.quiet else found, flush=True)
    if given.out is not None:
        found.save(given.out)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return in_one_line("noise", lambda: report(given))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does
    sys.exit(main())
