"""The ways to drive a noise optimizer, shared by SSAM and wrap: perturb(), perturbations(), step(closure), train()/eval().

A subclass says how clean weights are updated (`_update`) and, for keep_perturbed, how they are updated and perturbed
again (`_update_and_perturb`). Everything about order, draws, accumulation, state and checkpoints is here, once.
Tests: test_ssam_driving.py, test_keep_perturbed.py, test_perturbations.py, test_checkpoints.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import _options
from ._noise import NoiseState, PerturbedWeightsChanged

NOISE_DEFAULTS: dict[str, Any] = {
    "noise_std": 0.0,
    "distribution": "gaussian",
    "scale": "isotropic",
    "samples": 1,
    "antithetic": False,
    "clean_weight": 0.0,
    "keep_perturbed": False,
}

WAYS = (
    "Drive it in one of these ways: (1) `with opt.perturb(): loss.backward()` and then `opt.step()`; "
    "(2) `opt.step(closure)`; (3) `for _ in opt.perturbations(): loss.backward()` and then `opt.step()`; "
    "(4) construct it with keep_perturbed=True, call `opt.train()` once, and keep a stock loop."
)


class Perturbation:
    """One pass: inside, the parameters hold clean + noise; leaving puts the exact clean bits back.

    `perturb()` makes one that moves on to the next draw when it ends; the passes of one step share theirs
    (`last=False`), and the pass at clean weights moves nothing.
    """

    def __init__(
        self, owner: NoiseDriver, sample: int = 0, negate: bool = False, clean: bool = False, last: bool = True
    ) -> None:
        self._owner = owner
        self._noise = (sample, negate)
        self._clean = clean
        self._last = last
        self._inside = False

    def __enter__(self) -> Perturbation:
        owner = self._owner
        owner._begin_pass()
        self._inside = True
        try:
            if not self._clean:
                owner._noise.apply(*self._noise)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave()
        except PerturbedWeightsChanged as changed:
            if error is None:
                raise
            # The exception on its way matters more; the message must not get lost with it.
            warnings.warn(str(changed), RuntimeWarning, stacklevel=2)
        if kind is None:
            self._owner._fresh = True

    def _leave(self) -> None:
        owner = self._owner
        try:
            owner._noise.restore()
        except PerturbedWeightsChanged:
            raise
        except BaseException:  # a signal in the middle: restoring again is right wherever it struck
            owner._noise.restore()
            raise
        finally:
            if self._inside:
                self._inside = False
                owner._inside_pass = False
                if self._last:
                    owner._noise.advance()

    def __del__(self) -> None:
        # A signal in the instant before __exit__ runs would otherwise leave the weights perturbed.
        if self._inside:
            self._leave()


class NoiseDriver(Optimizer):
    """Base of the optimizers of this package: an Optimizer whose gradients are taken at perturbed weights."""

    _noise: NoiseState
    _inside_pass: bool
    _fresh: bool
    _training: bool
    _pending_clean: dict[Tensor, Tensor]

    def _init_driver(self, seed: int | None) -> None:
        self._noise = NoiseState(lambda: self.param_groups, _options.resolve_seed(seed))
        self._inside_pass = False
        self._fresh = False
        self._training = False
        self._pending_clean = {}

    # -- what a subclass provides ----------------------------------------------------------------------------------

    def _update(self) -> None:
        """Updates the clean weights, which the parameters hold, from their gradients."""
        raise NotImplementedError

    def _update_and_perturb(self) -> None:
        """Updates the clean weights of perturbed parameters and perturbs with the next draw."""
        self._noise.restore()
        self._update()
        self._noise.apply(draw_offset=1)

    # -- options ---------------------------------------------------------------------------------------------------

    def _option(self, name: str) -> Any:
        return self.param_groups[0][name] if self.param_groups else self.defaults[name]

    def _check_group(self, group: dict[str, Any]) -> None:
        _options.check_noise(group)
        if self.param_groups:
            _options.check_common(group, self.param_groups[0])

    @staticmethod
    def _check_tensors(params: list[Tensor]) -> None:
        for i, p in enumerate(params):
            _options.check_parameter(p, i)

    @property
    def seed(self) -> int:
        """The seed of the noise."""
        return self._noise.seed

    @property
    def draw(self) -> int:
        """Number of the draw in use (perturbed) or next (clean)."""
        return self._noise.draw

    def _noisy(self) -> bool:
        return any(float(group["noise_std"]) > 0 for group in self.param_groups)

    # -- one pass --------------------------------------------------------------------------------------------------

    def _begin_pass(self) -> None:
        if self._inside_pass:
            raise RuntimeError(
                "perturb() inside perturb(): the weights are perturbed already. Leave the first one before "
                "the next; for several draws a step use opt.perturbations() with samples=K."
            )
        if self._option("keep_perturbed"):
            raise RuntimeError(
                "perturb() on an optimizer with keep_perturbed=True: its weights stay perturbed after opt.train(). "
                "Run forward and backward plainly and call opt.step()."
            )
        self._settle()
        self._inside_pass = True

    def perturb(self) -> Perturbation:
        """Context in which the parameters hold clean + noise; on leaving, the exact clean bits are back.

        Each call uses the next draw of noise. Several backward passes inside one context, or several contexts before
        one `step()`, accumulate gradients as usual.

        Raises:
            RuntimeError: inside another `perturb()`, with keep_perturbed=True, where samples, antithetic or
                clean_weight ask for more than one pass (use `perturbations()`), or, on leaving, if parameters were
                written to inside.

        Example:
            >>> import torch, torch_ssam
            >>> w = torch.nn.Parameter(torch.ones(3))
            >>> opt = torch_ssam.SSAM([w], lr=0.1, noise_std=0.5, seed=0)
            >>> with opt.perturb():
            ...     w.square().sum().backward()
            >>> torch.equal(w, torch.ones(3))
            True
            >>> opt.step()
        """
        if _options.passes_of(self.param_groups[0]) > 1:
            raise RuntimeError(
                f"perturb() is one pass and the options ask for {_options.passes_of(self.param_groups[0])} a step "
                f"(samples={self._option('samples')}, antithetic={self._option('antithetic')}, "
                f"clean_weight={self._option('clean_weight')}). Use `for _ in opt.perturbations():`."
            )
        return Perturbation(self)

    def _passes(self, parts: int | None = None) -> list[tuple[int, bool, bool]]:
        """(sample, negate, clean) of every pass of one step."""
        antithetic = self._option("antithetic")
        passes = [
            (k, negate, False)
            for k in range(self._option("samples"))
            for negate in ((False, True) if antithetic else (False,))
        ]
        if self._option("clean_weight") > 0:
            passes.append((0, False, True))
        return passes

    def _weights(self, passes: list[tuple[int, bool, bool]], shares: list[float] | None = None) -> list[float]:
        """Weight of each pass in the mean gradient: clean_weight for the clean one, shares of the rest for noisy ones."""
        clean_weight = float(self._option("clean_weight"))
        shares = [1.0] * len(passes) if shares is None else shares
        noisy = sum(share for (_, _, clean), share in zip(passes, shares, strict=True) if not clean)
        has_clean = any(clean for _, _, clean in passes)
        rest = 1.0 - clean_weight if has_clean else 1.0
        return [
            clean_weight if clean else rest * share / noisy
            for (_, _, clean), share in zip(passes, shares, strict=True)
        ]

    def perturbations(self, *inputs: Any) -> Iterator[Any]:
        """Runs the loop body once for each pass of a step; afterwards p.grad holds its old value plus the mean gradient.

        There are `samples` passes, twice as many with `antithetic` (+noise, then -noise), one more at the clean
        weights where `clean_weight` > 0. All samples of a step share one draw. Do not zero gradients inside the loop.

        Args:
            *inputs: tensors (or dicts, lists, tuples of tensors) with the examples along dimension 0. They are split
                over the passes, as LPF-SGD does (K draws at the cost of one gradient), and each part's gradient is
                weighted by its share of the examples. With fewer examples than passes, the first passes take one each.

        Yields:
            The number of the pass, or the part of the inputs (a tuple if there were several).

        Example:
            >>> import torch, torch_ssam
            >>> w = torch.nn.Parameter(torch.ones(3))
            >>> opt = torch_ssam.SSAM([w], lr=0.1, noise_std=0.5, samples=2, antithetic=True, seed=0)
            >>> for _ in opt.perturbations():
            ...     w.square().sum().backward()
            >>> torch.allclose(w.grad, 2 * torch.ones(3))  # noise cancels in a pair on a quadratic
            True
        """
        passes = self._passes()
        if inputs:
            total = _examples(inputs)
            passes = passes[:total] if total < len(passes) else passes
            bounds = [total * k // len(passes) for k in range(len(passes) + 1)]
            shares = [float(bounds[k + 1] - bounds[k]) for k in range(len(passes))]
        else:
            bounds, shares = [], [1.0] * len(passes)
        weights = self._weights(passes, shares)
        scale = 1.0  # p.grad holds the sum so far divided by this
        try:
            for k, (sample, negate, clean) in enumerate(passes):
                if weights[k] != scale:
                    self._scale_grads(scale / weights[k])
                    scale = weights[k]
                with Perturbation(self, sample, negate, clean, last=False):
                    if not inputs:
                        yield k
                    else:
                        part = tuple(_slice(x, bounds[k], bounds[k + 1]) for x in inputs)
                        yield part[0] if len(part) == 1 else part
        finally:
            if scale != 1.0:
                self._scale_grads(scale)
            self._noise.advance()

    def _scale_grads(self, factor: float) -> None:
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, factor)

    # -- step ------------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates the clean weights.

        Args:
            closure: clears gradients, computes the loss, calls backward and returns the loss. It is run at perturbed
                weights, once for each pass, with gradients enabled.

        Returns:
            The loss of the closure (the weighted mean over passes), or None.

        Raises:
            RuntimeError: without a perturbed gradient since the last step, inside `perturb()`, or, with
                keep_perturbed, before `train()`.
        """
        if self._inside_pass:
            raise RuntimeError(
                "step() inside perturb(): the weights are perturbed. Leave the context (or the loop over "
                "perturbations()) first, then call step()."
            )
        if self._option("keep_perturbed"):
            return self._step_kept(closure)
        self._settle()
        loss = None
        if closure is not None:
            loss = self._run_closure(closure)
        elif not self._fresh and self._noisy() and not self._idle():
            raise RuntimeError(
                f"step() without a gradient at perturbed weights since the last step: this would train without noise. {WAYS}"
            )
        with torch.no_grad():
            self._update()
        self._fresh = False
        return loss

    def _idle(self) -> bool:
        """Whether every learning rate is 0: a step then trains nothing (checkpoint tools make one to create state)."""
        return all(float(group.get("lr", 1.0)) == 0.0 for group in self.param_groups)

    def _step_kept(self, closure: Callable[[], Any] | None) -> Any:
        if not self._training and not self._idle():
            raise RuntimeError(
                "step() on an optimizer with keep_perturbed=True that is in eval: call opt.train() before the first "
                "forward pass (again after construction, load_state_dict() and opt.eval()), so that gradients are "
                "taken at perturbed weights."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            if self._training:
                try:
                    self._update_and_perturb()
                except PerturbedWeightsChanged:
                    self._training = False
                    raise
                self._noise.advance()
            else:
                self._update()
        return loss

    def _run_closure(self, closure: Callable[[], Any]) -> Any:
        passes = self._passes()
        if len(passes) == 1:
            with Perturbation(self), torch.enable_grad():
                return closure()
        weights = self._weights(passes)
        mean_loss: Any = None
        total: dict[Tensor, Tensor] = {}
        # What p.grad holds now counts in full unless the closure clears it, as closures do: it goes in with the first
        # pass, divided by that pass's weight.
        self._scale_grads(1.0 / weights[0])
        try:
            for (sample, negate, clean), weight in zip(passes, weights, strict=True):
                with Perturbation(self, sample, negate, clean, last=False), torch.enable_grad():
                    loss = closure()
                self._collect(total, weight)
                if loss is not None:
                    part = loss.detach() * weight if isinstance(loss, Tensor) else loss * weight
                    mean_loss = part if mean_loss is None else mean_loss + part
        finally:
            if not total:  # the first pass failed
                self._scale_grads(weights[0])
            for p, grad in total.items():
                p.grad = grad
            self._noise.advance()
        return mean_loss

    def _collect(self, total: dict[Tensor, Tensor], weight: float) -> None:
        """Adds weight * p.grad to the total and clears p.grad for the next pass."""
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    if p in total:
                        total[p].add_(p.grad, alpha=weight)
                    else:
                        total[p] = p.grad.detach().mul_(weight)
                    p.grad = None

    # -- keep_perturbed: train and eval ----------------------------------------------------------------------------

    def train(self, mode: bool = True) -> None:
        """With keep_perturbed, perturbs the weights for training; otherwise moves nothing.

        Call it once before the first forward pass, and again after `eval()` or `load_state_dict()`.
        """
        if not mode:
            self.eval()
            return
        self._settle()
        if not self._option("keep_perturbed") or self._training:
            return
        try:
            self._noise.apply()
        except BaseException:
            self._noise.restore()
            raise
        self._training = True

    def eval(self) -> None:
        """With keep_perturbed, puts the clean weights back for evaluating and saving; otherwise moves nothing."""
        self._settle()
        if self._training:
            self._training = False
            self._noise.restore()

    def _settle(self) -> None:
        """Writes clean weights that a loaded state_dict carried."""
        if not self._pending_clean:
            return
        with torch.no_grad():
            for p, clean in self._pending_clean.items():
                p.copy_(clean)
        self._pending_clean = {}

    # -- state -----------------------------------------------------------------------------------------------------

    def _add_noise_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Seed and draw go into every group; clean weights, while the parameters hold others, into the state."""
        draw = self._noise.draw
        for group in state_dict["param_groups"]:
            group["seed"], group["draw"] = self._noise.seed, draw
        clean = {**self._noise.applied_clean(), **self._pending_clean}
        if clean:
            place = self._noise.place_of()
            for p, weights in clean.items():
                state_dict["state"].setdefault(place[p], {})["clean"] = weights
        return state_dict

    def _with_own_options(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state_dict with our options where it has none: one of a plain optimizer must not switch the noise off."""
        groups = state_dict.get("param_groups")
        if not isinstance(groups, list) or len(groups) != len(self.param_groups):
            return state_dict  # the base class says what is wrong
        merged = []
        for own, group in zip(self.param_groups, groups, strict=True):
            kept = {k: v for k, v in own.items() if k in self.defaults and k not in group}
            merged.append({**group, **kept})
        return {**state_dict, "param_groups": merged}

    def _take_noise_state(self) -> None:
        """After a load: moves seed, draw and clean weights from groups and state to where they live."""
        for group in self.param_groups:
            seed, draw = group.pop("seed", None), group.pop("draw", None)
            if seed is not None and draw is not None:
                self._noise.set_generator(int(seed), int(draw))
        self._pending_clean = {
            p: state.pop("clean") for p, state in self.state.items() if isinstance(state, dict) and "clean" in state
        }
        for p, state in list(self.state.items()):
            if isinstance(state, dict) and not any(value is not None for value in state.values()):
                del self.state[p]  # as plain SGD writes it without momentum
        self._fresh = False

    def _prepare_load(self) -> None:
        if self._inside_pass:
            raise RuntimeError("load_state_dict() inside perturb(): leave the context first.")
        self._pending_clean = {}
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        if self._inside_pass:
            raise RuntimeError("The optimizer cannot be pickled or copied inside perturb(): leave the context first.")
        state: dict[str, Any] = super().__getstate__()
        state.update(
            _noise=self._noise,
            _inside_pass=False,
            _fresh=self._fresh,
            _training=self._training,
            _pending_clean=self._pending_clean,
        )
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_noise" in state:
            self._noise.bind(lambda: self.param_groups)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    else:
        raise TypeError(
            f"perturbations() got an input of type {type(value).__name__}; expected tensors, or dicts, lists or tuples of tensors."
        )


def _examples(inputs: tuple[Any, ...]) -> int:
    sizes = {t.shape[0] if t.dim() else 0 for x in inputs for t in _tensors(x)}
    if len(sizes) != 1 or 0 in sizes:
        shapes = [tuple(t.shape) for x in inputs for t in _tensors(x)]
        raise ValueError(
            f"perturbations() got inputs of shapes {shapes}; expected the same number of examples (> 0) along "
            "dimension 0 of each."
        )
    return int(sizes.pop())


def _slice(value: Any, begin: int, end: int) -> Any:
    if isinstance(value, Tensor):
        return value[begin:end]
    if isinstance(value, dict):
        return type(value)({k: _slice(v, begin, end) for k, v in value.items()})
    return type(value)(_slice(v, begin, end) for v in value)
