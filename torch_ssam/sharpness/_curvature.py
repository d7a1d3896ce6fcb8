"""Hessian trace and top eigenvalues through curvlinops.

The Hessian of the mean loss is curvlinops' linear operator, which multiplies it by vectors and never forms it.
Tests: tests/python/test_sharpness.py, test_sharpness_models.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_ssam import _checks
from torch_ssam._common.extras import need
from torch_ssam.ops.plain_numbers import float64_of

from ._estimate import Floats, Plan
from ._evaluate import Data, Evaluator, LossFunction, Mode, measuring_noise
from ._visible import check_product

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
    """The data as curvlinops reads it, once for each product."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return ((inputs, targets) for inputs, targets, _ in self._evaluator.read())


def _batch_product(
    model: nn.Module,
    loss_fn: nn.Module,
    params: list[Tensor],
    inputs: Any,
    targets: Tensor,
    columns: list[Tensor],
) -> list[Tensor]:
    """The Hessian of one batch times vectors, in the last dimension of `columns`, by two backward passes.

    In place of curvlinops' own product, a forward over a backward pass: torch (2.13) lacks forward derivatives of
    what SiLU, GroupNorm and others do backwards, and has wrong ones under vmap for LayerNorm and BatchNorm
    (pytorch/pytorch 196700, 196699); and that product needs a loss that is not linear in any parameter.
    """
    with torch.enable_grad():
        loss = loss_fn(model(inputs), targets)
        gradient = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        curved = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]
        if not curved:
            return [torch.zeros_like(column) for column in columns]
        count = columns[0].shape[-1]
        products = [
            torch.autograd.grad(
                [gradient[i] for i in curved],
                params,
                [columns[i][..., k] for i in curved],
                retain_graph=k + 1 < count,
                allow_unused=True,
                materialize_grads=True,
            )
            for k in range(count)
        ]
    return [torch.stack(product, dim=-1).detach() for product in zip(*products, strict=True)]


@contextlib.contextmanager
def _hessian(evaluator: Evaluator, what: str) -> Iterator[tuple[Any, list[int]]]:
    """Context with curvlinops' operator on the parameters that have curvature, and which of `params` they are.

    The rows and columns of the others are zero; where there are no others, there is no operator (None). Inside, the
    model is ready, and torch's random generators are put back.
    """
    curvlinops = need("curvlinops", "sharpness", what)
    owned = {id(p) for p in evaluator.model.parameters()}
    if any(id(p) not in owned for p in evaluator.params):
        raise ValueError("params holds a tensor that is no parameter of the model; expected the model's own.")
    # The other implementations of attention have no second derivatives.
    with evaluator.ready(), sdpa_kernel(SDPBackend.MATH):
        # Also says in our words what is wrong with the data or the loss.
        places = [i for i, curved in enumerate(evaluator.curved()) if curved]
        if not places:
            yield None, places
            return
        params = [evaluator.params[i] for i in places]
        examples = sum(n for _, _, n in evaluator.batches)
        share = _Share(evaluator.loss_fn, examples)
        operator = curvlinops.HessianLinearOperator(
            evaluator.model,
            share,
            params,
            _Pairs(evaluator),
            num_data=examples,
            check_deterministic=False,
            batch_size_fn=lambda inputs: 1,  # the shares are in the loss
        )
        operator._matmat_batch = partial(_batch_product, evaluator.model, share, params)
        check_product(evaluator, places, operator.__matmul__)
        yield operator, places


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
    return torch.cat([float64_of(product).flatten(0, -2) for product in hessian @ columns])


def hessian_diagonal(
    evaluator: Evaluator,
    what: str,
    plan: Plan,
    seed: int | None,
    reduce: Callable[[int, Tensor], list[float]],
    progress: Any,
) -> tuple[Floats, Floats, bool, bool, int]:
    """Mean and half-width of [total, *parts], parts the sums that `reduce` makes of each parameter's share of
    diag(H); then converged, exact and the number of products."""
    noise = measuring_noise(evaluator.params, 1.0, seed, distribution="rademacher")
    with _hessian(evaluator, what) as (hessian, places):
        params = [evaluator.params[i] for i in places]

        def totals(terms: Iterable[Tensor]) -> Floats:
            found = dict(zip(places, terms, strict=True))
            parts = [
                value
                for i, p in enumerate(evaluator.params)
                for value in reduce(i, found[i] if i in found else torch.zeros(p.shape, dtype=torch.float64))
            ]
            return np.array([sum(parts), *parts])

        sizes = [p.numel() for p in params]
        if not params or (sum(sizes) <= max(plan.samples, DENSE) and not evaluator.random):
            entries = torch.split(_whole(hessian, params).diagonal(), sizes) if params else ()
            exact = totals(e.reshape(p.shape) for e, p in zip(entries, params, strict=True))
            return exact, np.zeros_like(exact), True, True, sum(sizes)

        def draw(i: int) -> Floats:
            signs = [noise.noise(p, sample=i) for p in params]
            return totals(float64_of(v) * float64_of(h) for v, h in zip(signs, hessian @ signs, strict=True))

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
    mode: Mode = "eval",
    progress: bool | Callable[[int, int], object] | None = None,
) -> HessianTrace:
    """Trace of the Hessian of the mean loss, Tr Hess L(w), by Hutchinson's estimator v^T H v.

    v has independent signs +-1 (Hutchinson 1990), H v takes two backward passes in curvlinops' operator. Up to 64
    parameters, or `samples`, the diagonal itself is computed instead, unless the model draws random numbers
    (dropout in train mode), which every product does anew. Parameters that the loss does not use, or is linear in, count 0.
    noise_std^2 / 2 times the trace is `average` to second order.

    Args: as in `average`; draws are products with H, each about three gradients.
    Returns: HessianTrace, in units of the loss over the weights squared.
    Raises: ImportError: without curvlinops (`pip install 'torch_ssam[sharpness]'`). HiddenParameters, a ValueError: autograd
    does not see all that the loss depends on.

    >>> import torch, torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(2, init_scale=1.0)
    >>> data = [(torch.ones(1, 2), torch.zeros(1, 2))]
    >>> hessian_trace(layer, lambda p, y: (p - y).square().sum(), data).mean  # 2 sum_h sum_i P_i^2
    8.0
    """
    evaluator = Evaluator(model, loss_fn, data, params, mode)
    plan = Plan.of(samples, max_samples, precision, confidence)
    mean, half, converged, exact, draws = hessian_diagonal(
        evaluator, "hessian_trace", plan, seed, lambda _, term: [float(term.sum())], progress
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
    mode: Mode = "eval",
) -> Floats:
    """The largest eigenvalues of the Hessian of the mean loss, in descending order.

    Algebraically largest, by SciPy's implicitly restarted Lanczos over curvlinops' operator; up to 64
    parameters from the whole matrix. Parameters that the loss does not use, or is linear in, have eigenvalues 0.
    A model that draws random numbers (dropout in train mode) draws the same ones in every product.

    Args:
        model, loss_fn, data, params, mode: as in `average`.
        count: how many, from 1 to the number of parameters.
        tolerance: relative, > 0.
        max_restarts: of Lanczos, at most.
        seed: of the starting vector.

    Returns: (count,), in units of the loss over the weights squared.
    Raises: RuntimeError: no convergence. ImportError, HiddenParameters: as in `hessian_trace`.

    >>> import torch, torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(1, init_scale=1.0)  # Hessian [[2, 4], [4, 2]]
    >>> top_eigenvalues(layer, torch.nn.functional.mse_loss, [(torch.ones(1, 1), torch.zeros(1, 1))], 2)
    array([ 6., -2.])
    """
    evaluator = Evaluator(model, loss_fn, data, params, mode)
    size = sum(p.numel() for p in evaluator.params)
    count = _checks.count("count", count, high=size)
    tolerance = _checks.number("tolerance", tolerance, open_low=True)
    max_restarts = _checks.count("max_restarts", max_restarts)
    noise = measuring_noise(evaluator.params, 1.0, seed)
    with _hessian(evaluator, "top_eigenvalues") as (hessian, places):
        params = [evaluator.params[i] for i in places]
        rank = sum(p.numel() for p in params)  # at most
        found = np.zeros(0)
        if params and (rank <= DENSE or count >= rank // 2):
            matrix = _whole(hessian, params)
            found = torch.linalg.eigvalsh((matrix + matrix.mT) / 2).cpu().numpy()
        elif params:
            start = torch.cat([float64_of(noise.noise(p)).reshape(-1) for p in params]).cpu().numpy()
            found = _lanczos(evaluator, hessian, start, count, tolerance, max_restarts)
    descending: Floats = np.sort(np.append(found, np.zeros(size - rank)))[::-1][:count].copy()
    return descending


def _lanczos(
    evaluator: Evaluator, hessian: Any, start: Floats, count: int, tolerance: float, max_restarts: int
) -> Floats:
    """The largest eigenvalues by SciPy."""
    linalg = need("scipy.sparse.linalg", "sharpness", "top_eigenvalues")
    plain, generators = hessian.to_scipy(), evaluator.generators
    same = generators.state()

    def product(vector: Floats) -> Any:
        generators.set(same)
        return plain.matvec(vector)

    if not product(start).any():  # a Hessian of zeros, which ARPACK refuses
        return np.zeros(count)
    try:
        values = linalg.eigsh(
            linalg.LinearOperator(plain.shape, matvec=product, dtype=plain.dtype),
            k=count,
            which="LA",
            v0=start,
            tol=tolerance,
            maxiter=max_restarts,
            return_eigenvectors=False,
        )
    except linalg.ArpackNoConvergence as error:
        raise RuntimeError(
            f"top_eigenvalues did not converge in {max_restarts} restarts ({len(error.eigenvalues)} of "
            f"{count} did). Raise max_restarts or tolerance, or ask for fewer."
        ) from None
    return np.asarray(values, dtype=np.float64)


def top_eigenvalue(model: nn.Module, loss_fn: LossFunction, data: Data, **options: Any) -> float:
    """The largest eigenvalue of the Hessian of the mean loss; options as in `top_eigenvalues`.

    >>> import torch, torch_ssam
    >>> layer = torch_ssam.DiagonalLinear(1, init_scale=1.0)  # Hessian [[2, 4], [4, 2]]
    >>> round(top_eigenvalue(layer, torch.nn.functional.mse_loss, [(torch.ones(1, 1), torch.zeros(1, 1))]), 4)
    6.0
    """
    return float(top_eigenvalues(model, loss_fn, data, 1, **options)[0])
