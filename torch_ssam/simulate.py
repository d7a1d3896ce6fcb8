"""The S-SAM recursion on diagonal linear networks, at full machine speed.

`simulate` is a front over csrc/theory/simulate.h: it gives arrays their shapes and runs the progress bar;
values are checked, and failures recognised, in C++. docs/simulator.md has the layout of the noise and the
rules of diagnosis. Tests: tests/python/test_simulate*.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_ssam._common.progress import resolve_progress
from torch_ssam._theory_arrays import as_array, as_covariance, as_integer, as_number
from torch_ssam.noise.options import Distribution

_C: Any = importlib.import_module("torch_ssam._C")

__all__ = ["Simulation", "simulate"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, repr=False)
class Simulation:
    """What a simulation recorded, and what went wrong in it; see `simulate`.

    steps (records,): 0, record_every, ..., the last. weights (records, replicates, depth, d), product
    (records, replicates, d), loss (records, replicates), the loss O at the clean weights (not O_R), and
    balance_gap (records, replicates), the largest |w_i^2 - w_j^2| over layers and coordinates. NaN once a
    replicate has diverged.
    """

    steps: npt.NDArray[np.int64]
    weights: Floats
    loss: Floats
    product: Floats
    balance_gap: Floats
    #: First step with weights that are not finite, -1 where there is none; (replicates,).
    diverged_at: npt.NDArray[np.int64]
    #: Some coordinate stays near zero although its target is not; (replicates,).
    collapsed: Bools
    #: Some coordinate's steps undo each other at the end, and do not get smaller; (replicates,).
    oscillating: Bools
    #: Some coordinate's layers still differ at the end; (replicates,).
    unbalanced: Bools
    #: Step size below which gradient descent on O_R descends from the start; NaN where not defined;
    #: (replicates,).
    step_size_bound: Floats
    #: What happened, and the bound or threshold that explains it; "" where nothing failed.
    explanations: list[str] = field(default_factory=list)

    @property
    def diverged(self) -> Bools:
        """Replicates whose weights stopped being finite."""
        return np.asarray(self.diverged_at >= 0)

    def explain(self) -> str:
        """The failures in words: how many replicates show each, and the explanation of the first that shows
        any."""
        lines = []
        for name in ("diverged", "collapsed", "oscillating", "unbalanced"):
            flags = getattr(self, name)
            if flags.any():
                lines.append(
                    f"{int(flags.sum())} of {flags.size} replicates {name}, first {int(np.argmax(flags))}"
                )
        for replicate, text in enumerate(self.explanations):
            if text:
                lines.append(f"replicate {replicate}: {text}")
                break
        return "\n".join(lines) or "no failure recognised"

    def __repr__(self) -> str:
        records, replicates, depth, features = self.weights.shape
        failures = [
            f"{name}={int(getattr(self, name).sum())}"
            for name in ("diverged", "collapsed", "oscillating", "unbalanced")
            if getattr(self, name).any()
        ]
        shape = f"steps={int(self.steps[-1])}, {records=}, {replicates=}, {depth=}, {features=}"
        return f"Simulation({', '.join([shape, *failures])})"


def simulate(
    target: Any = None,
    depth: int = 2,
    *,
    noise_std: Any,
    lr: float,
    steps: int,
    init: Any = 1.0,
    replicates: int = 1,
    seed: int = 0,
    covariance: Any = None,
    distribution: Distribution = "gaussian",
    lr_decay: str | None = None,
    radius: float | None = None,
    expected: bool = False,
    record_every: int | None = None,
    threads: int | None = None,
    progress: bool | Callable[[int, int], object] | None = None,
    data: tuple[Any, Any] | None = None,
    batch_size: int | None = None,
) -> Simulation:
    """Simulates S-SAM on a diagonal linear network: W_{k+1} = W_k - lr_k grad O(W_k + xi_k) ([CLS],
    docs/simulator.md).

    The noise of layer l, replicate r and coordinate h at step k is the library's noise of draw k, place l,
    element r * d + h: what `torch_ssam.SSAM` draws for `depth` float64 parameters of shape (replicates, d).
    Results depend on the seed alone, not on threads or processor. Runs without the GIL; Ctrl-C raises
    KeyboardInterrupt.

    Args:
        target: w*, one value per coordinate (d,), or a number. With data it may be None.
        depth: layers L >= 2.
        noise_std: standard deviation eta >= 0 in units of the weights: a number, (depth,) or (depth, d).
        lr: step size >= 0.
        steps: steps >= 0.
        init: first weights: a number, (depth,), (depth, d) or (replicates, depth, d).
        replicates: independent runs.
        seed: 64-bit integer.
        covariance: None (whitened), the diagonal (d,), or (d, d).
        distribution: "gaussian" or "rademacher".
        lr_decay: None, or "harmonic" for lr / (k + 1).
        radius: after each step the replicate's stacked weights are projected onto the ball of this radius.
        expected: gradient descent on O_R, the expected dynamics, in place of drawing noise.
        record_every: steps between records; None for about 100 records. Memory is bounded by what is
            recorded.
        threads: None for one per processor.
        progress: True for a tqdm bar, or a function of (steps done, steps), called about ten times a second.
        data: (X, y) of shapes (n, d) and (n,) in place of a covariance: the loss is the mean of (y - X p)^2.
        batch_size: examples drawn with replacement at every step; None for all of them, without sampling.

    Returns:
        Simulation.

    Raises:
        ValueError, TypeError: arguments out of range or of the wrong shape. KeyboardInterrupt: Ctrl-C.

    Example:
        >>> from torch_ssam.simulate import simulate
        >>> run = simulate([2.0, 0.1], noise_std=1.0, lr=0.01, steps=2000, expected=True)
        >>> run.product[-1, 0].round(6)
        array([1., 0.])
        >>> run.collapsed
        array([ True])
        >>> print(run.explanations[0].split(".")[0])
        Collapsed to zero: coordinate 1, where the target it sees is 0
    """
    depth = as_integer("depth", depth)
    inputs, labels = _data(data)
    w_star = _target(target, inputs, labels)
    features = w_star.size if w_star.size else (0 if inputs is None else inputs.shape[1])
    if inputs is not None and inputs.shape[1] != features:
        raise ValueError(
            f"target must have one value per column of X, got {features} for X of shape {inputs.shape}"
        )
    sigma = as_covariance(covariance)
    if sigma is not None and set(sigma.shape) != {features}:
        raise ValueError(
            f"covariance must have shape ({features}, {features}) or ({features},) for {features} targets, "
            f"got {sigma.shape}"
        )
    replicates = as_integer("replicates", replicates)
    eta = _shaped("noise_std", noise_std, [(), (depth,), (depth, features)])
    start = _shaped("init", init, [(), (depth,), (depth, features), (replicates, depth, features)])
    seed = as_integer("seed", seed)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be a 64-bit integer, got {seed}")
    if lr_decay not in (None, "harmonic"):
        raise ValueError(f"lr_decay must be None or 'harmonic', got {lr_decay!r}")
    if not isinstance(distribution, str):
        raise TypeError(f"distribution must be a string, got {type(distribution).__name__}")
    report, close = resolve_progress(progress, as_integer("steps", steps), "step")
    try:
        result = _C.simulate(
            target=w_star,
            depth=depth,
            noise_std=eta,
            lr=as_number("lr", lr),
            steps=as_integer("steps", steps),
            init=start,
            replicates=replicates,
            seed=seed,
            covariance=sigma,
            distribution=distribution,
            harmonic_lr=lr_decay is not None,
            radius=None if radius is None else as_number("radius", radius),
            expected=bool(expected),
            record_every=0 if record_every is None else _at_least_one("record_every", record_every),
            threads=0 if threads is None else _at_least_one("threads", threads),
            inputs=inputs,
            labels=labels,
            batch_size=0 if batch_size is None else _at_least_one("batch_size", batch_size),
            progress=report,
        )
    finally:
        close()
    return Simulation(**result)


def _at_least_one(name: str, value: Any) -> int:
    number = as_integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be None or an integer >= 1, got {number}")
    return number


def _shaped(name: str, value: Any, shapes: list[tuple[int, ...]]) -> Floats:
    array = as_array(name, value)
    if array.shape not in shapes:
        expected = ", ".join(str(shape) for shape in shapes[1:])
        raise ValueError(
            f"{name} must be a number or have one of the shapes {expected}, got shape {array.shape}"
        )
    return array.reshape(-1)


def _data(data: tuple[Any, Any] | None) -> tuple[Floats | None, Floats | None]:
    if data is None:
        return None, None
    try:
        inputs, labels = data
    except (TypeError, ValueError):
        raise ValueError("data must be a pair (X, y)") from None
    x, y = as_array("data X", inputs), as_array("data y", labels)
    if x.ndim != 2 or y.shape != x.shape[:1] or x.size == 0:
        raise ValueError(f"data must be X of shape (n, d) and y of shape (n,), got {x.shape} and {y.shape}")
    return x, y


# Multiplications that a least-squares solution may take: it serves the diagnosis only.
_QUICK = 1e9


def _target(target: Any, inputs: Floats | None, labels: Floats | None) -> Floats:
    if target is not None:
        array = as_array("target", target)
        if array.ndim > 1 or array.size == 0:
            raise ValueError(f"target must be a number or have shape (d,), got shape {array.shape}")
        if array.ndim == 0 and inputs is not None:
            return np.full(inputs.shape[1], float(array))
        return array.reshape(-1)
    if inputs is None or labels is None:
        raise ValueError(
            "target must be given unless there are data to learn from; pass target or data=(X, y)"
        )
    finite = np.isfinite(inputs).all() and np.isfinite(labels).all()
    if inputs.size * inputs.shape[1] > _QUICK or not finite:
        return np.empty(0)
    return np.asarray(np.linalg.lstsq(inputs, labels, rcond=None)[0], dtype=np.float64)
