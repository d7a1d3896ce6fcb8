"""`python -m torch_ssam.sharpness MODULE:FACTORY FIRST SECOND`: a sharpness report of two checkpoints.

FACTORY is a function without arguments that returns (model, loss_fn, data). Tests:
tests/python/test_sharpness.py.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import compare


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_ssam.sharpness",
        description="A sharpness report that sets checkpoints side by side.",
    )
    parser.add_argument("factory", help="MODULE:FUNCTION, a function that returns (model, loss_fn, data)")
    parser.add_argument("checkpoints", nargs="+", help="two or more files that torch.save wrote")
    parser.add_argument("--noise-std", type=float, default=0.01, help="noise of the average (default 0.01)")
    parser.add_argument("--radius", type=float, default=0.05, help="ball of the worst case (default 0.05)")
    parser.add_argument("--samples", type=int, default=16, help="draws of noise (default 16)")
    parser.add_argument("--mode", choices=("eval", "train"), default="eval")
    parser.add_argument("--out", help="folder for sharpness.txt, .csv and .png")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    given = parser.parse_args(arguments)
    module, _, function = given.factory.partition(":")
    if not function:
        parser.error(f"factory is {given.factory!r}; expected MODULE:FUNCTION")
    if len(set(given.checkpoints)) < 2:
        parser.error("one checkpoint was given; expected two or more different ones")
    sys.path.insert(0, "")  # as `python -m` finds modules of the current folder
    model, loss_fn, data = getattr(importlib.import_module(module), function)()
    report = compare(
        model,
        {name: name for name in given.checkpoints},
        loss_fn,
        data,
        noise_std=given.noise_std,
        radius=given.radius,
        samples=given.samples,
        mode=given.mode,
        progress=None if given.quiet else True,
    )
    print(report)
    if given.out is not None:
        report.save(given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
