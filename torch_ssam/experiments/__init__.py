"""The experiments of the paper's setting and its open questions: `python -m torch_ssam.experiments NAME|all`.

Each is a function of a `Setting` (quick or not, seed) that returns a `Result` (claim, prediction, what was
measured, verdict, table, figure). `run(name)` runs one, `run_all(out)` all of them with a report page. They
need the extra `experiments`: matplotlib, scikit-learn, SciPy, tqdm. docs/experiments.md tells what each found. Tests:
tests/python/test_experiments.py.

    >>> from torch_ssam.experiments import NAMES, run
    >>> NAMES[:3]
    ('landscape', 'balancing', 'thresholding')
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import torch

from ._common import Result, Setting
from ._report import write_report

__all__ = ["NAMES", "Result", "Setting", "run", "run_all", "write_report"]

#: Seven experiments on the theory, then the paper's open questions.
NAMES = (
    "landscape",
    "balancing",
    "thresholding",
    "starts",
    "networks",
    "pac_bayes",
    "signatures",
    "stationary",
    "correlated",
    "geometry",
    "deep_linear",
)


def run(name: str, *, quick: bool = False, seed: int = 0, out: str | Path | None = None) -> Result:
    """Runs one experiment; with `out`, saves its figure and table there as NAME.png and NAME.csv."""
    if name not in NAMES:
        raise ValueError(f"unknown experiment {name!r}; expected one of {', '.join(NAMES)}")
    start = time.perf_counter()
    # Small matrices: PyTorch's threads would cost more than they bring.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result: Result = importlib.import_module(f"{__name__}.{name}").run(Setting(quick, seed))
    finally:
        torch.set_num_threads(threads)
    result.seconds = time.perf_counter() - start
    if out is not None:
        result.save(Path(out), name)
    return result


def run_all(out: str | Path = "out/experiments", *, quick: bool = False, seed: int = 0) -> dict[str, Result]:
    """Runs every experiment and writes `report.html`, one self-contained page, beside the figures and
    tables."""
    results = {name: run(name, quick=quick, seed=seed, out=out) for name in NAMES}
    write_report(results, Path(out) / "report.html", quick=quick, seed=seed)
    return results
