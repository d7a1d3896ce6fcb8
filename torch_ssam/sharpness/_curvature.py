"""Hessian trace and top eigenvalues through curvlinops, and the balance of the layers.

curvlinops multiplies the Hessian of the mean loss by vectors and never forms it. Tests:
tests/python/test_sharpness.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_ssam import _options
from torch_ssam._diagonal import DiagonalLinear
from torch_ssam._extras import need
from torch_ssam._weight_noise import WeightNoise

from ._estimate import Floats, Plan
from ._evaluate import Batches, Data, Evaluator, LossFunction

# Up to this many parameters all of the Hessian costs no more than an estimate or a Lanczos run.
DENSE = 64


class _Share(nn.Module):
    """loss_fn times the batch's share of the examples: summed over batches, the mean over the data."""

    reduction = "sum"  # curvlinops asks for it, and then adds up batches as they are

    def __init__(self, loss_fn: LossFunction, examples: int) -> None:
        super().__init__()
        self._loss_fn, self._examples = loss_fn, examples

    def forward(self, outputs: Any, targets: Tensor) -> Tensor:
        return self._loss_fn(outputs, targets).reshape(()) * (len(targets) / self._examples)


class _Pairs:
    """Batches as curvlinops reads them."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return ((inputs, targets) for inputs, targets, _ in self._batches)


def _hessian(evaluator: Evaluator, what: str) -> Any:
    curvlinops = need("curvlinops", "sharpness", what)
    owned = {id(p) for p in evaluator.model.parameters()}
    if any(id(p) not in owned for p in evaluator.params):
        raise ValueError("params holds a tensor that is no parameter of the model; expected the model's own.")
    evaluator.loss_and_gradient()  # says in our words what is wrong with the data or the loss
    examples = sum(n for _, _, n in evaluator.batches)
    return curvlinops.HessianLinearOperator(
        evaluator.model,
        _Share(evaluator.loss_fn, examples),
        evaluator.params,
        _Pairs(evaluator.batches),
        num_data=examples,
        check_deterministic=False,
        batch_size_fn=len,
    )


@dataclass(frozen=True)
class HessianTrace:
    """Trace of the Hessian of the loss, estimated; see `hessian_trace`."""

    mean: float
    #: Half the width of the confidence interval; 0 if exact.
    half_width: float
    confidence: float
    #: Products with the Hessian.
    draws: int
    #: Whether the precision asked for was reached (True where none was asked for).
    converged: bool
    #: All of the diagonal was computed.
    exact: bool
    #: The same trace, each parameter's block alone, in the order of `params`.
    by_parameter: tuple[float, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the confidence interval."""
        return self.mean - self.half_width, self.mean + self.half_width


def _whole(hessian: Any, params: list[Tensor]) -> Tensor:
    """The Hessian as a float64 matrix, for few parameters."""
    sizes = [p.numel() for p in params]
    identity = torch.eye(sum(sizes), dtype=params[0].dtype, device=params[0].device)
    columns = [
        part.to(p.dtype).reshape(*p.shape, -1)
        for part, p in zip(torch.split(identity, sizes), params, strict=True)
    ]
    return torch.cat([product.double().flatten(0, -2) for product in hessian @ columns])


def _diagonal(
    hessian: Any,
    params: list[Tensor],
    plan: Plan,
    seed: int | None,
    reduce: Callable[[int, Tensor], list[float]],
    progress: Any,
) -> tuple[Floats, Floats, bool, bool, int]:
    """Mean and half-width of [total, *parts], parts the sums that `reduce` makes of each parameter's share of
    diag(H); then converged, exact and the number of products."""

    def totals(terms: Iterable[Tensor]) -> Floats:
        parts = [value for i, term in enumerate(terms) for value in reduce(i, term)]
        return np.array([sum(parts), *parts])

    sizes = [p.numel() for p in params]
    if sum(sizes) <= max(plan.samples, DENSE):
        entries = torch.split(_whole(hessian, params).diagonal(), sizes)
        exact = totals(e.reshape(p.shape) for e, p in zip(entries, params, strict=True))
        return exact, np.zeros_like(exact), True, True, sum(sizes)
    noise = WeightNoise(params, 1.0, distribution="rademacher", seed=seed)

    def draw(i: int) -> Floats:
        signs = [noise.noise(p, sample=i) for p in params]
        return totals(v.double() * h.double() for v, h in zip(signs, hessian @ signs, strict=True))

    values, half, converged = plan.run(draw, progress, "product")
    return values.mean(axis=0), half, converged, False, len(values)


def hessian_trace(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    *,
    precision: float | None = None,
    confidence: float = 0.95,
    samples: int = 16,
    max_samples: int = 1000,
    params: Iterable[Tensor] | None = None,
    seed: int | None = 0,
    mode: str = "eval",
    progress: bool | Callable[[int, int], object] | None = None,
) -> HessianTrace:
    """Trace of the Hessian of the mean loss, Tr Hess L(w), by Hutchinson's estimator v^T H v.

    v has independent signs +-1 (Hutchinson 1990), H v is computed by curvlinops. Up to 64 parameters, or
    `samples`, the diagonal itself is computed instead. noise_std^2 / 2 times the trace is `average` to second
    order.

    Args: as in `average`; draws are products with H, each about three gradients.
    Returns: HessianTrace, in units of the loss over the weights squared.
    Raises: ImportError: without curvlinops (`pip install 'torch_ssam[sharpness]'`).

    >>> import torch, torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(2, init_scale=1.0)
    >>> data = [(torch.ones(1, 2), torch.zeros(1, 2))]
    >>> hessian_trace(layer, lambda p, y: (p - y).square().sum(), data).mean  # 2 sum_h sum_i P_i^2
    8.0
    """
    evaluator = Evaluator(model, loss_fn, data, params, mode)
    plan = Plan.of(samples, max_samples, precision, confidence)
    with evaluator.ready():
        mean, half, converged, exact, draws = _diagonal(
            _hessian(evaluator, "hessian_trace"),
            evaluator.params,
            plan,
            seed,
            lambda _, term: [float(term.sum())],
            progress,
        )
    return HessianTrace(
        mean=float(mean[0]),
        half_width=float(half[0]),
        confidence=plan.confidence,
        draws=draws,
        converged=converged,
        exact=exact,
        by_parameter=tuple(float(value) for value in mean[1:]),
    )


def top_eigenvalues(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    count: int = 1,
    *,
    tolerance: float = 1e-3,
    max_restarts: int = 1000,
    params: Iterable[Tensor] | None = None,
    seed: int | None = 0,
    mode: str = "eval",
) -> Floats:
    """The largest eigenvalues of the Hessian of the mean loss, in descending order.

    Algebraically largest, by SciPy's implicitly restarted Lanczos over curvlinops' products; up to 64
    parameters from the whole matrix.

    Args:
        model, loss_fn, data, params, mode: as in `average`.
        count: how many, from 1 to the number of parameters.
        tolerance: relative, > 0.
        max_restarts: of Lanczos, at most.
        seed: of the starting vector.

    Returns: (count,), in units of the loss over the weights squared.
    Raises: RuntimeError: no convergence. ImportError: without curvlinops.

    >>> import torch, torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(1, init_scale=1.0)  # Hessian [[2, 4], [4, 2]]
    >>> top_eigenvalues(layer, torch.nn.functional.mse_loss, [(torch.ones(1, 1), torch.zeros(1, 1))], 2)
    array([ 6., -2.])
    """
    evaluator = Evaluator(model, loss_fn, data, params, mode)
    size = sum(p.numel() for p in evaluator.params)
    count = _options.count("count", count, high=size)
    tolerance = _options.number("tolerance", tolerance, open_low=True)
    max_restarts = _options.count("max_restarts", max_restarts)
    with evaluator.ready():
        hessian = _hessian(evaluator, "top_eigenvalues")
        if size <= DENSE or count >= size // 2:
            matrix = _whole(hessian, evaluator.params)
            whole = torch.linalg.eigvalsh((matrix + matrix.mT) / 2).flip(0)[:count]
            exact: Floats = whole.cpu().numpy()
            return exact
        linalg = need("scipy.sparse.linalg", "sharpness", "top_eigenvalues")
        start = WeightNoise(evaluator.params, 1.0, seed=seed)
        vector = torch.cat([start.noise(p).double().reshape(-1) for p in evaluator.params]).cpu().numpy()
        try:
            values = linalg.eigsh(
                hessian.to_scipy(),
                k=count,
                which="LA",
                v0=vector,
                tol=tolerance,
                maxiter=max_restarts,
                return_eigenvectors=False,
            )
        except linalg.ArpackNoConvergence as error:
            raise RuntimeError(
                f"top_eigenvalues did not converge in {max_restarts} restarts ({len(error.eigenvalues)} of "
                f"{count} did). Raise max_restarts or tolerance, or ask for fewer."
            ) from None
    descending: Floats = np.sort(np.asarray(values, dtype=np.float64))[::-1].copy()
    return descending


def top_eigenvalue(model: nn.Module, loss_fn: LossFunction, data: Data, **options: Any) -> float:
    """The largest eigenvalue of the Hessian of the mean loss; options as in `top_eigenvalues`.

    >>> import torch, torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(1, init_scale=1.0)  # Hessian [[2, 4], [4, 2]]
    >>> round(top_eigenvalue(layer, torch.nn.functional.mse_loss, [(torch.ones(1, 1), torch.zeros(1, 1))]), 4)
    6.0
    """
    return float(top_eigenvalues(model, loss_fn, data, 1, **options)[0])


@dataclass(frozen=True)
class LayerBalance:
    """How evenly the layers share the weights and the curvature; see `layer_balance`."""

    names: tuple[str, ...]
    #: |W_l|^2 of every layer.
    squared_norms: Floats
    #: |W_i|^2 - |W_j|^2, (layers, layers); on a DiagonalLinear the sum over features of its `balance_gaps`.
    gaps: Floats
    #: log(largest / smallest squared norm); 0 is balance, inf where a layer is zero.
    imbalance: float
    #: Trace of every layer's block of the Hessian, its half-width, and log(largest / smallest); None without
    #: loss_fn and data.
    traces: Floats | None = None
    traces_half_width: Floats | None = None
    trace_imbalance: float | None = None


def _spread(values: Floats) -> float:
    low, high = float(values.min()), float(values.max())
    return math.inf if low <= 0 < high else math.log(high / low) if high > 0 else 0.0


def layer_balance(
    model: nn.Module,
    loss_fn: LossFunction | None = None,
    data: Data | None = None,
    *,
    confidence: float = 0.95,
    samples: int = 16,
    seed: int | None = 0,
    mode: str = "eval",
    progress: bool | Callable[[int, int], object] | None = None,
) -> LayerBalance:
    """Squared norms of the layers' weights and, with a loss and data, the traces of their Hessian blocks.

    A layer is a parameter of two or more dimensions that requires gradients; each layer of a `DiagonalLinear`
    is one. Biases are left out. On diagonal networks S-SAM drives w_i^2 - w_j^2 to 0 (arXiv 2503.11891, theorem 3.1).
    Between layers of different shapes it is the traces that it tends to make equal: rescaling layers at an
    unchanged product, eta^2 / 2 times their sum is least there.

    Args: as in `hessian_trace`; loss_fn and data together or not at all (traces need curvlinops).
    Returns: LayerBalance.

    >>> import torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(3, init_scale=[2.0, 1.0])
    >>> layer_balance(layer).squared_norms
    array([12.,  3.])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module.")
    if (loss_fn is None) != (data is None):
        raise ValueError("layer_balance got one of loss_fn and data; expected both, for traces, or neither.")
    diagonal = {id(m.weight) for m in model.modules() if isinstance(m, DiagonalLinear)}
    chosen = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.dim() >= 2]
    if not chosen:
        raise ValueError("the model has no parameter of two or more dimensions that requires gradients.")

    def by_layer(p: Tensor, terms: Tensor) -> list[float]:
        values: list[float] = terms.flatten(1).sum(1).tolist() if id(p) in diagonal else [float(terms.sum())]
        return values

    names = tuple(
        layer
        for name, p in chosen
        for layer in ([f"{name}[{i}]" for i in range(len(p))] if id(p) in diagonal else [name])
    )
    norms = np.array([v for _, p in chosen for v in by_layer(p, p.detach().double().square())])
    result = LayerBalance(names, norms, norms[:, None] - norms[None, :], _spread(norms))
    if loss_fn is None or data is None:
        return result
    evaluator = Evaluator(model, loss_fn, data, [p for _, p in chosen], mode)
    with evaluator.ready():
        mean, half, *_ = _diagonal(
            _hessian(evaluator, "layer_balance with a loss"),
            evaluator.params,
            Plan.of(samples, samples, None, confidence),
            seed,
            lambda i, term: by_layer(evaluator.params[i], term),
            progress,
        )
    return replace(result, traces=mean[1:], traces_half_width=half[1:], trace_imbalance=_spread(mean[1:]))
