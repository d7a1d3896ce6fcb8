"""PAC-Bayes certificates: a bound on the true risk of a classifier with Gaussian noise on its weights.

A prior N(w_0, s^2 I) around weights trained on one part of the data, a posterior N(w, noise_std^2 I) around
weights that S-SAM found with any of it, and n examples that w_0 has not seen. With B = KL + ln(2 sqrt(n) /
delta), kl(risk on the examples || true risk) <= B / n for all posteriors at once (Seeger-Maurer). The formulas
are `torch_ssam.theory`'s; here is the measuring: Monte Carlo with a failure probability of its own, the choice
of noise_std and s, and what has to hold for the bound to mean anything. docs/sharpness.md is the guide,
examples/python/certificate.py a program. Tests: tests/python/test_pac_bayes.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from torch_ssam import _checks, theory
from torch_ssam._common.measured_model import Move, add_noise
from torch_ssam._common.progress import resolve_progress
from torch_ssam.noise import seeds
from torch_ssam.noise.weight_noise import WeightNoise
from torch_ssam.ops.plain_numbers import float64_of
from torch_ssam.sharpness._evaluate import Batches, Data, Evaluator, trainable

__all__ = ["Certificate", "GibbsRisk", "certify", "gibbs_risk", "zero_one"]


def __dir__() -> list[str]:
    return __all__


# Through importlib, because a compiled module has no annotations for mypy to read.
_C: Any = importlib.import_module("torch_ssam._C")

KINDS: tuple[str, ...] = get_args(theory.BoundKind)
Loss = Callable[[Tensor, Tensor], Tensor]


def zero_one(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 for a wrong answer, 0 for a right one, (n,): the loss that certificates are about.

    outputs (n, classes): the largest score answers, targets are classes. outputs (n,) or (n, 1): the sign
    answers, targets are 0 and 1. An output that is NaN is wrong.

    >>> zero_one(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]))
    tensor([0., 1.])
    """
    if targets.dim() != 1 or outputs.dim() not in (1, 2) or len(outputs) != len(targets):
        raise ValueError(
            f"outputs have shape {tuple(outputs.shape)} and targets {tuple(targets.shape)}; expected "
            "(n, classes), or (n,) for two classes, and (n,)."
        )
    if outputs.dim() == 2 and outputs.shape[1] > 1:
        right = outputs.argmax(1) == targets
        return (~right | outputs.isnan().any(1)).float()
    scores = outputs.reshape(-1)
    return (((scores > 0) != (targets > 0)) | scores.isnan()).float()


@dataclass(frozen=True)
class GibbsRisk:
    """Risk of a classifier that draws its weights from N(w, noise_std^2 I), by Monte Carlo; see `gibbs_risk`."""

    #: Mean over the draws.
    mean: float
    #: The risk on these examples lies below with probability 1 - delta over the draws.
    upper: float
    delta: float
    draws: int
    #: Examples that the draws are taken from.
    n: int


@dataclass(frozen=True)
class Certificate:
    """A bound on the true risk, and all that it rests on; see `certify`."""

    #: With probability 1 - delta the true risk of the randomised classifier is at most this.
    bound: float
    #: Empirical risk of the randomised classifier on the n examples: the mean over the draws ...
    risk: float
    #: ... and what it is below, but for delta_monte_carlo. The bound starts from this.
    risk_upper: float
    #: Empirical risk of the clean weights, for comparison: the bound is not about it.
    deterministic_risk: float
    #: Probability that the bound fails: delta_pac_bayes over the examples, delta_monte_carlo over the draws.
    delta: float
    delta_pac_bayes: float
    delta_monte_carlo: float
    #: Examples that the prior has not seen.
    n: int
    #: KL(posterior || prior), in nats.
    kl: float
    #: |w - w_0|_2.
    distance: float
    #: Number of weights that carry noise.
    parameters: int
    noise_std: float
    prior_std: float
    #: Draws of (weights, batch) behind `risk`, and examples in each batch.
    draws: int
    batch_size: int
    kind: str
    #: For each noise_std tried: it, its pilot risk, the best prior_std and the bound they would give.
    tried: tuple[tuple[float, float, float, float], ...]
    assumptions: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"With probability {1 - self.delta:g}, the true risk of the randomised classifier "
            f"N(w, {self.noise_std:g}^2 I) is at most {self.bound:.4f}.",
            f"  empirical risk  {self.risk:.4f} by {self.draws} draws of {self.batch_size} examples; below "
            f"{self.risk_upper:.4f} but for probability {self.delta_monte_carlo:g}",
            f"  clean weights   {self.deterministic_risk:.4f} on the same examples (not covered by the bound)",
            f"  examples        n = {self.n}",
            f"  KL              {self.kl:.4g} nats: |w - w_0| = {self.distance:.4g}, {self.parameters} weights, "
            f"prior std {self.prior_std:g}",
            f"  bound           {self.kind}, delta {self.delta:g}",
            "Assumed:",
            *(f"  {i}. {text}" for i, text in enumerate(self.assumptions, 1)),
        ]
        return "\n".join(lines)


class _Examples:
    """All examples as two tensors, and the loss of weights on some of them."""

    def __init__(self, model: nn.Module, data: Data, loss: Loss) -> None:
        if not callable(loss):
            raise TypeError(f"loss is a {type(loss).__name__}; expected a function of (outputs, targets).")
        self._evaluator = Evaluator(model, loss, data)
        self.params = self._evaluator.params
        self._loss = loss
        inputs, targets = [], []
        for x, y, _ in Batches(data, self.params[0].device):
            if not isinstance(x, Tensor) or len(x) != len(y):
                came = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(
                    f"the inputs of a batch are {came} for {len(y)} targets; expected a tensor with as many "
                    "rows, since single examples are drawn."
                )
            inputs.append(x)
            targets.append(y)
        self.inputs, self.targets = torch.cat(inputs), torch.cat(targets)
        self.ready = self._evaluator.ready

    def __len__(self) -> int:
        return len(self.targets)

    @torch.no_grad()
    def risk(self, rows: Tensor | slice, at: Move | None = None) -> float:
        """The mean loss on some of them, with the model moved and put back."""
        measured, targets = self._evaluator.measured, self.targets[rows]
        if at is not None:
            at(measured)
        losses = self._loss(self._evaluator.model(self.inputs[rows]), targets)
        measured.restore()
        if not isinstance(losses, Tensor) or losses.shape != targets.shape[:1]:
            came = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(f"loss gave {came}; expected one value an example, ({len(targets)},).")
        low, high = float(losses.min()), float(losses.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"loss gave values from {low:g} to {high:g}; expected [0, 1], for which alone the bound holds. "
                "Clip it, and say so where you report the bound."
            )
        return float(float64_of(losses).mean())

    def whole_risk(self) -> float:
        total = 0.0
        for begin in range(0, len(self), 500):
            rows = slice(begin, min(begin + 500, len(self)))
            total += self.risk(rows) * (rows.stop - rows.start)
        return total / len(self)


class _Draws:
    """Risks of independent draws: fresh noise, and examples drawn with replacement.

    Every one has the posterior's empirical risk as its mean and lies in [0, 1], so `sampled_risk_bound` holds
    for their mean; that is Monte Carlo over noise and examples at once, with as many draws as there are
    batches. That holds given the weights, so neither noise nor rows may be those of a training with this seed.
    """

    def __init__(self, examples: _Examples, seed: int | None, batch_size: int) -> None:
        self._examples, self._batch_size = examples, batch_size
        self._seed = seeds.measuring_seed(seed)
        self._rows = torch.Generator().manual_seed(self._seed)
        self._next = 0

    def mean(self, noise_std: float, draws: int, tell: Callable[[], object]) -> float:
        noise = WeightNoise(self._examples.params, noise_std, seed=self._seed)
        noise.load_state_dict({"seed": noise.seed, "draw": self._next})  # draws used before do not come again
        self._next += draws
        total = 0.0
        for _ in range(draws):
            rows = torch.randint(len(self._examples), (self._batch_size,), generator=self._rows)
            total += self._examples.risk(rows.to(self._examples.targets.device), add_noise(noise))
            tell()
        return total / draws


def gibbs_risk(
    model: nn.Module,
    data: Data,
    noise_std: float,
    *,
    draws: int = 2000,
    batch_size: int = 64,
    delta: float = 0.05,
    loss: Loss = zero_one,
    seed: int | None = 0,
    progress: bool | Callable[[int, int], object] | None = None,
) -> GibbsRisk:
    """Risk on the data of a classifier that draws its weights from N(w, noise_std^2 I) for every answer.

    The noise is never that which S-SAM draws from the same seed, since the weights depend on that.

    Args: as in `certify`. Returns: GibbsRisk, whose `upper` is theory's kl_inverse(mean, ln(2 / delta) / draws).

    >>> import torch_ssam
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad(): _ = model.weight.copy_(torch.eye(2))
    >>> gibbs_risk(model, (torch.eye(2), torch.tensor([0, 1])), 0.1, draws=50).mean
    0.0
    """
    examples = _Examples(model, data, loss)
    noise_std = _checks.number("noise_std", noise_std)
    draws, batch_size = _checks.count("draws", draws), _checks.count("batch_size", batch_size)
    delta = _probability("delta", delta)
    report, close = resolve_progress(progress, draws, "draw")
    done = _Counter(draws, report)
    try:
        with examples.ready():
            mean = _Draws(examples, seed, batch_size).mean(noise_std, draws, done)
    finally:
        close()
    return GibbsRisk(mean, float(_C.sampled_risk_bound(mean, draws, delta)), delta, draws, len(examples))


class _Counter:
    def __init__(self, total: int, report: Callable[[int, int], object] | None) -> None:
        self._done, self._total, self._report = 0, total, report

    def __call__(self) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._done, self._total)


def _probability(name: str, value: Any) -> float:
    result = _checks.number(name, value, open_low=True)
    if result >= 1:
        raise ValueError(f"{name} is {result:g}; expected 0 < {name} < 1, such as 0.05.")
    return result


def _grid(name: str, value: Any) -> list[float]:
    """One number or several, also as an array or a tensor."""
    dimensions = getattr(value, "ndim", None)
    if dimensions is not None and dimensions > 1:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; expected a number > 0, or several in one dimension."
        )
    one = dimensions == 0 or not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping)
    values = [value] if one else list(value.detach() if isinstance(value, Tensor) else value)
    if not values:
        raise ValueError(f"{name} is empty; expected a number > 0, or several.")
    return [_checks.number(name, v, open_low=True) for v in values]


def _same(a: Any, b: Any) -> bool:
    """Whether two states are equal, tensors nested in them included; what cannot be compared is not."""
    try:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.dtype == b.dtype and torch.equal(a, b.to(a.device))
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return a.dtype == b.dtype and np.array_equal(a, b)
        if any(isinstance(value, Tensor | np.ndarray) for value in (a, b)):
            return False  # == would broadcast
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple) and isinstance(b, list | tuple):
            return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
        return bool(a == b)
    except (TypeError, ValueError, RuntimeError):
        return False


def _whole_state(model: nn.Module) -> dict[str, Any]:
    """A state_dict and what it leaves out: buffers that are not persistent."""
    return {
        **model.state_dict(),
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _prior_weights(model: nn.Module, prior: Any) -> dict[str, Tensor]:
    """The prior's weights by name; whatever carries no noise must be as the prior has it."""
    state = _whole_state(prior) if isinstance(prior, nn.Module) else prior
    if not isinstance(state, Mapping):
        raise TypeError(f"prior is a {type(prior).__name__}; expected a module or a state_dict.")
    own = _whole_state(model)
    saved = model.state_dict()
    # Refused, not assumed: these buffers enter the outputs like any other, a training on the examples may have
    # moved them, and whoever has the prior can hand them over. An assumption is for what no argument can show.
    unsaved = sorted(
        name
        for name, _ in model.named_buffers(remove_duplicate=False)
        if name not in saved and name not in state
    )
    if unsaved and not isinstance(prior, nn.Module):
        raise ValueError(
            f"prior is a state_dict, which leaves out buffers that are not persistent; the model has "
            f"{', '.join(unsaved[:5])}, and the bound is wrong if the examples changed them. Pass the prior as a "
            "module, copied before the training on the examples, or {**prior.state_dict(), "
            "**dict(prior.named_buffers())}."
        )
    differing = sorted(set(own) ^ set(state)) or sorted(
        name
        for name, value in own.items()
        if isinstance(value, Tensor) != isinstance(state[name], Tensor)
        or getattr(value, "shape", None) != getattr(state[name], "shape", None)
    )
    if differing:
        raise ValueError(
            f"prior and model differ in {', '.join(differing[:5])}; expected the same architecture."
        )
    noisy = {id(p) for p in trainable(model)}
    moved = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in noisy}
    for name, value in own.items():
        if name not in moved and not _same(value, state[name]):
            raise ValueError(
                f"{name} carries no noise and differs between model and prior, or cannot be compared: it would "
                "have seen the examples at no cost in KL, and the bound would be wrong. Keep it as the prior has it "
                "(BatchNorm: stay in eval mode after the prior's training; extra state: with an == that compares "
                "what it holds), or let it require gradients."
            )
    return {name: state[name] for name in moved}


def certify(
    model: nn.Module,
    prior: nn.Module | Mapping[str, Any],
    data: Data,
    *,
    noise_std: float | Iterable[float] | Tensor,
    prior_std: float | Iterable[float] | Tensor | None = None,
    delta: float = 0.05,
    draws: int = 20_000,
    batch_size: int = 32,
    pilot_draws: int = 500,
    kind: theory.BoundKind = "seeger",
    loss: Loss = zero_one,
    seed: int | None = 0,
    progress: bool | Callable[[int, int], object] | None = None,
) -> Certificate:
    """A bound on the true risk of the randomised classifier N(w, noise_std^2 I), w the model's weights.

    It holds with probability 1 - delta: half of delta is spent on the bound, over the choice of the n examples,
    and shared by the values of prior_std, 6 / (pi^2 j^2) of it for the j-th; half on Monte Carlo, over the draws.
    noise_std and the prior_std are chosen from their grids. The bound holds for all posteriors at once, so the
    choice of noise_std costs nothing; it is made on pilot draws, and the risk is then measured on fresh ones.

    It is about the Gibbs classifier, which draws its weights anew for every answer. Of the clean weights it says
    nothing; the majority vote over draws has at most twice the risk.

    Args:
        model: the classifier, at the clean weights w of the posterior. All parameters that require gradients
            carry noise. Used in eval mode.
        prior: module or state_dict with the weights w_0 that the prior is centred at. They must not depend on
            `data`; frozen parameters, buffers and extra state must be the model's. A module where the model has
            buffers that are not persistent, since a state_dict leaves them out.
        data: the n examples, (inputs, targets) or batches of such; w may depend on them. Held in memory at once.
        noise_std: of the posterior, > 0, or several to choose from: a number, a sequence, an array or a tensor.
        prior_std: of the prior, > 0, or several, fixed before the data are seen; None for the values of
            noise_std. KL is least near prior_std = noise_std unless w is far from w_0.
        delta: probability that the bound fails, in (0, 1).
        draws: of noise with batch_size examples each, for the risk; with more draws the Monte Carlo part shrinks
            like 1 / sqrt(draws), or 1 / draws at a small risk.
        pilot_draws: for each noise_std, where there are several.
        kind: "seeger", "maurer", "thiemann" or "catoni" (with C = 1), as in `theory.pac_bayes_bound`.
        loss: (outputs, targets) -> (n,) in [0, 1]; default the 0-1 error, `zero_one`.
        seed: of draws and examples. The noise is never that which S-SAM draws from the same seed: the weights
            depend on that, and the Monte Carlo half of delta is for draws that they do not depend on.
        progress: True for a tqdm bar, or a function of (draws done, draws to do).

    Returns: Certificate; `print` it. Raises: ValueError, TypeError: arguments that make no sense, losses outside
    of [0, 1], buffers that differ from the prior's or cannot be compared.

    >>> import torch_ssam
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad(): _ = model.weight.copy_(torch.eye(2))
    >>> data = torch.eye(2).repeat(500, 1), torch.arange(2).repeat(500)
    >>> certificate = certify(model, model, data, noise_std=0.1, draws=2000)
    >>> certificate.kl, round(certificate.bound, 3)  # kl_inverse(kl_inverse(0, ln(80) / 2000), ln(2529.8) / 1000)
    (0.0, 0.014)
    """
    weights = _prior_weights(model, prior)
    examples = _Examples(model, data, loss)
    stds = _grid("noise_std", noise_std)
    prior_stds = stds if prior_std is None else _grid("prior_std", prior_std)
    delta = _probability("delta", delta)
    draws, batch_size = _checks.count("draws", draws), _checks.count("batch_size", batch_size)
    pilot_draws = _checks.count("pilot_draws", pilot_draws)
    _checks.one_of("kind", kind, KINDS)
    n = len(examples)

    named = {id(p): name for name, p in model.named_parameters()}
    w = torch.cat([float64_of(p.detach()).reshape(-1) for p in examples.params]).cpu()
    w0 = torch.cat([float64_of(weights[named[id(p)]].detach()).reshape(-1).cpu() for p in examples.params])

    def bounds(risk: float, noise_std: float, draws: int) -> tuple[float, float, float, float]:
        """Smallest bound over the priors, its prior_std and KL, and the upper bound on the empirical risk."""
        upper = float(_C.sampled_risk_bound(risk, draws, delta / 2))
        found = []
        for j, std in enumerate(prior_stds, 1):
            kl = theory.gaussian_kl(w, w0, noise_std, std)
            share = float(_C.prior_grid_delta(j, delta / 2)) if len(prior_stds) > 1 else delta / 2
            found.append((float(theory.pac_bayes_bound(upper, kl, n, share, kind)), std, kl, upper))
        return min(found)

    several = len(stds) > 1
    total = draws + (pilot_draws * len(stds) if several else 0)
    report, close = resolve_progress(progress, total, "draw")
    done = _Counter(total, report)
    sampler = _Draws(examples, seed, batch_size)
    tried = []
    try:
        with examples.ready():
            if several:
                for std in stds:
                    risk = sampler.mean(std, pilot_draws, done)
                    # As many draws as the final ones will have: the pilot's own uncertainty is not the choice's.
                    value, best, _, _ = bounds(risk, std, draws)
                    tried.append((std, risk, best, value))
            chosen = min(tried, key=lambda row: row[3])[0] if several else stds[0]
            risk = sampler.mean(chosen, draws, done)
            deterministic = examples.whole_risk()
    finally:
        close()
    bound, best_prior, kl, upper = bounds(risk, chosen, draws)
    return Certificate(
        bound=bound,
        risk=risk,
        risk_upper=upper,
        deterministic_risk=deterministic,
        delta=delta,
        delta_pac_bayes=delta / 2,
        delta_monte_carlo=delta / 2,
        n=n,
        kl=kl,
        distance=float((w - w0).norm()),
        parameters=len(w),
        noise_std=chosen,
        prior_std=best_prior,
        draws=draws,
        batch_size=batch_size,
        kind=kind,
        tried=tuple(tried),
        assumptions=(
            f"The {n} examples are independent draws from one distribution, the one that the true risk is of.",
            "The prior's mean w_0 does not depend on them: it was trained on other examples, as were all frozen "
            "parameters, buffers and constants of modules and preprocessing, which carry no noise.",
            f"The {len(prior_stds)} value(s) of prior_std"
            + (" and Catoni's C = 1" if kind == "catoni" else "")
            + ", delta and the kind of bound were fixed before the examples were seen. The posterior's mean and "
            "noise_std may depend on them.",
            "The loss lies in [0, 1]"
            + (
                ": it is the 0-1 error."
                if loss is zero_one
                else "; values outside were refused, not clipped."
            ),
            "The risk is that of the Gibbs classifier, which draws its weights from the posterior for every answer; "
            "the clean weights are not covered, a majority vote over draws has at most twice this risk.",
            "Pseudo-random draws stand for random ones, and rounding in the network for none.",
        ),
    )
