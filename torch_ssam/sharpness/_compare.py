"""A sharpness report that sets checkpoints side by side. Tests: tests/python/test_sharpness.py."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from torch_ssam import _checks
from torch_ssam._common.checkpoints import Checkpoint, LoadedModel, read_checkpoint
from torch_ssam._common.extras import need
from torch_ssam.ops.plain_numbers import float64_of

from ._average import average
from ._balance import layer_balance
from ._curvature import hessian_trace, top_eigenvalue
from ._estimate import Floats, student_quantile
from ._evaluate import Data, LossFunction, Mode
from ._landscape import Landscape, landscape
from ._visible import HiddenParameters
from ._worst_case import worst_case


@dataclass(frozen=True)
class Comparison:
    """Measures of sharpness of two or more checkpoints; see `compare`."""

    #: A dict a measure: "measure", then one text a checkpoint.
    rows: list[dict[str, str]]
    #: The numbers behind them: checkpoint -> measure -> value.
    values: dict[str, dict[str, float]]
    #: Average sharpness of each later checkpoint minus the first, same noise: (mean, half-width).
    differences: dict[str, tuple[float, float]]
    landscapes: dict[str, Landscape]
    notes: list[str]

    def __str__(self) -> str:
        columns = list(self.rows[0])
        cells = [columns, *([row[column] for column in columns] for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells
        ]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    def figure(self) -> Any:
        """The landscapes along one filter-normalised direction, a curve a checkpoint (needs matplotlib)."""
        figure = need("matplotlib.figure", "sharpness", "the plot of a comparison").Figure(
            figsize=(6, 4.2), layout="constrained"
        )
        axis = figure.subplots()
        for name, found in self.landscapes.items():
            found.draw(axis, name)
        axis.set_title("Loss along a filter-normalised direction")
        axis.legend()
        return figure

    def save(self, folder: str | Path) -> None:
        """sharpness.txt, sharpness.csv and sharpness.png."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "sharpness.txt").write_text(f"{self}\n")
        with (place / "sharpness.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["checkpoint", "measure", "value"])
            for name, measures in self.values.items():
                writer.writerows([name, measure, repr(value)] for measure, value in measures.items())
        self.figure().savefig(place / "sharpness.png", dpi=120)


def compare(
    model: nn.Module,
    checkpoints: Mapping[str, Checkpoint],
    loss_fn: LossFunction,
    data: Data,
    *,
    noise_std: float = 0.01,
    radius: float = 0.05,
    samples: int = 16,
    points: int = 21,
    extent: float = 0.5,
    seed: int = 0,
    mode: Mode = "eval",
    progress: bool | Callable[[int, int], object] | None = None,
) -> Comparison:
    """A sharpness report: loss, average and worst-case sharpness, Hessian trace, top eigenvalue, balance.

    Every checkpoint sees the same noise, so that their average sharpness is compared draw by draw: the table
    has the paired difference from the first with its 95% interval. Sharpness depends on the scale of the
    weights; the filter-normalised landscape does less so.

    Args:
        model: the architecture. It is loaded with each checkpoint in turn, never copied, and afterwards what it was.
        checkpoints: two or more by name: a state_dict, a file that torch.save wrote (read with
            weights_only=True; one under "state_dict" or "model" is found), or a module.
        loss_fn, data, mode: as in `average`.
        noise_std: of the average sharpness, > 0.
        radius: of the worst case, > 0.
        samples: draws and products, >= 2.
        points, extent: of the landscape.
        progress: True for tqdm bars, or a function of (done, to do), for each measure.

    Returns: Comparison; `print` it, or `save(folder)` it. Without curvlinops (extra `sharpness`) trace and
    eigenvalue are left out, and where autograd does not see all parameters the worst case too; a note says so.

    >>> import torch, torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(2, init_scale=1.0)
    >>> other = {"weight": torch.tensor([[2.0, 2.0], [0.5, 0.5]]), "generator": layer.generator}
    >>> data = [(torch.ones(1, 2), torch.ones(1, 2))]
    >>> report = compare(layer, {"balanced": layer, "not": other}, torch.nn.functional.mse_loss, data)
    >>> report.values["balanced"]["imbalance"], round(report.values["not"]["imbalance"], 4)
    (0.0, 2.7726)
    """
    if not isinstance(checkpoints, Mapping) or len(checkpoints) < 2:
        came = (
            f"{len(checkpoints)} members" if isinstance(checkpoints, Mapping) else type(checkpoints).__name__
        )
        raise ValueError(
            f"checkpoints is {came}; expected a dict of two or more, name -> state_dict or file."
        )
    noise_std = _checks.number("noise_std", noise_std, open_low=True)
    curvature = importlib.util.find_spec("curvlinops") is not None
    notes = (
        [] if curvature else ["without curvlinops there is no Hessian: pip install 'torch_ssam[sharpness]'."]
    )
    loaded = {
        str(name): LoadedModel(
            checkpoint if isinstance(checkpoint, nn.Module) else model,
            str(name),
            read_checkpoint(str(name), checkpoint),
        )
        for name, checkpoint in checkpoints.items()
    }
    for context in loaded.values():
        with context:
            pass  # what does not fit is said before anything is measured
    values: dict[str, dict[str, float]] = {}
    texts: dict[str, dict[str, str]] = {}
    draws: dict[str, Floats] = {}
    landscapes: dict[str, Landscape] = {}
    common: dict[str, Any] = {"seed": seed, "mode": mode, "progress": progress}
    for name, context in loaded.items():
        own = context.model
        with context:
            mean = average(own, loss_fn, data, noise_std, samples=samples, **common)
            draws[name] = mean.values
            values[name] = {
                "loss": mean.loss,
                "average sharpness": mean.mean,
                "average sharpness +-": mean.half_width,
            }
            texts[name] = {
                "loss": f"{mean.loss:.4g}",
                f"average sharpness, std {noise_std:g}": _show(mean.mean, mean.half_width),
            }
            try:
                worst = worst_case(own, loss_fn, data, radius, **common)
                values[name]["worst case"] = worst.increase
                texts[name][f"worst case, radius {radius:g}"] = f">= {worst.increase:.4g}"
                if curvature:
                    trace = hessian_trace(own, loss_fn, data, samples=samples, **common)
                    top = top_eigenvalue(own, loss_fn, data, seed=seed, mode=mode)
                    values[name] |= {
                        "hessian trace": trace.mean,
                        "hessian trace +-": trace.half_width,
                        "top eigenvalue": top,
                    }
                    texts[name] |= {
                        "Hessian trace": _show(trace.mean, trace.half_width),
                        "top eigenvalue": f"{top:.4g}",
                    }
            except HiddenParameters as error:
                notes.append(f"{name} lacks what takes gradients: {error}")
            if any(p.requires_grad and p.dim() >= 2 for p in own.parameters()):
                imbalance = layer_balance(own).imbalance
                values[name]["imbalance"] = imbalance
                texts[name]["imbalance, log(max / min |W_l|^2)"] = f"{imbalance:.4g}"
            norm = math.sqrt(sum(float(float64_of(p.detach()).square().sum()) for p in own.parameters()))
            values[name]["norm"], texts[name]["norm of the weights"] = norm, f"{norm:.4g}"
            landscapes[name] = landscape(own, loss_fn, data, points=points, extent=extent, **common)
    first, *others = loaded
    t = student_quantile(0.95, samples - 1) / np.sqrt(samples)
    differences = {}
    for name in others:
        gap = draws[name] - draws[first]
        differences[name] = float(gap.mean()), float(t * gap.std(ddof=1))
    rows = [
        {"measure": measure, **{name: texts[name].get(measure, "") for name in loaded}}
        for measure in texts[first]
    ]
    rows.insert(
        2,
        {"measure": f"  minus {first}, paired", first: "", **{n: _show(*differences[n]) for n in others}},
    )
    notes.append("+- is half a 95% interval; a worst case is a lower bound on the maximum.")
    return Comparison(rows, values, differences, landscapes, notes)


def _show(mean: float, half: float) -> str:
    return f"{mean:.4g} +- {half:.2g}"
