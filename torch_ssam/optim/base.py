"""How a noise optimizer is driven, shared by SSAM, SSAMAdamW and wrap: perturb, perturbations, step, train and eval.

A subclass says how clean weights are updated (`_update`) and, for keep_perturbed, how they are updated and
perturbed again (`_update_and_perturb`). Everything about order, draws and accumulation is here, once. Tests:
test_ssam_driving.py, test_keep_perturbed.py, test_exceptions.py.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from torch_ssam.noise.options import count_passes, lr_is_zero
from torch_ssam.noise.seeds import in_process_group
from torch_ssam.ops.dtensor import local_of
from torch_ssam.ops.untraced import untraced
from torch_ssam.optim.counted import GradientWatch, Witness, first_gradient, warn_of_no_gradients
from torch_ssam.optim.hooks import hooked_step
from torch_ssam.optim.passes import (
    HALF,
    HeldGradients,
    bounds_of,
    examples_in,
    part_of,
    passes_of,
    weights_of,
)
from torch_ssam.optim.perturbation import Perturbation
from torch_ssam.optim.reading import ReadableOptimizer

WAYS = (
    "Drive it in one of these ways: (1) `with opt.perturb(): loss.backward()` and then `opt.step()`; "
    "(2) `opt.step(closure)`; (3) `for _ in opt.perturbations(): loss.backward()` and then `opt.step()`; "
    "(4) construct it with keep_perturbed=True, call `opt.train()` once, and keep a stock loop."
)

EMPTY_PASS = (
    "A pass has ended in which no p.grad changed: backward() belongs inside perturb() as well as the forward pass, and "
    "gradients that are computed otherwise are assigned inside. "
)


class NoiseDriver(ReadableOptimizer):
    """Base of the optimizers of this package: an Optimizer whose gradients are taken at perturbed weights."""

    _cleared = False  # whether gradients were filled with zeros since the last step
    _emptied = False  # whether zero_grad took all gradients away since the last pass
    _watched = False  # whether a pass is open whose gradients decide if it counts
    _watch: GradientWatch | None = None  # of the pass that is open, while no earlier one counts
    _witness: Witness | None = None  # a parameter that the last pass gave a gradient
    _pass_without_gradient = False  # whether a pass since the last step changed none
    _warned_of_clean_gradients = False
    _warned_of_no_gradients = False
    _steps_by_base = False  # whether `_update` calls the step of another optimizer, with the hooks that torch puts round it

    def _update(self) -> None:
        """Updates the clean weights, which the parameters hold, from their gradients."""
        raise NotImplementedError

    def _update_and_perturb(self) -> None:
        """Updates the clean weights of perturbed parameters and perturbs with the next draw."""
        self._noise.restore()
        self._update()
        self._noise.apply(draw_offset=1)

    # -- one pass --------------------------------------------------------------------------------------------

    def _check_pass(self) -> None:
        if self._inside_pass:
            raise RuntimeError(
                "perturb() inside perturb(): the weights are perturbed already. Leave the first one before "
                "the next; for several draws a step use opt.perturbations() with samples=K."
            )
        if self._option("keep_perturbed"):
            raise RuntimeError(
                "perturb() on an optimizer with keep_perturbed=True: its weights stay perturbed after "
                "opt.train(). "
                "Run forward and backward plainly and call opt.step()."
            )
        self._settle()

    @untraced
    def perturb(self) -> Perturbation:
        """Context in which the parameters hold clean + noise; on leaving, the exact clean bits are back.

        Parameters that others write to inside keep what was written, and are named; writing in place through
        `p.data` is invisible to PyTorch's version counter and is undone like the noise. Another optimizer's step over
        the perturbed weights is refused before it writes, and so is noise on top of them from another one.

        Each call uses the next draw of noise. Several backward passes inside one context, or several contexts
        before one `step()`, accumulate gradients as usual.

        Raises:
            RuntimeError: inside another `perturb()`, with keep_perturbed=True, where samples, antithetic or
                clean_weight ask for more than one pass (use `perturbations()`), or, on leaving, if parameters
                were written to inside.

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
        passes = count_passes(self.param_groups[0])
        if passes > 1:
            raise RuntimeError(
                f"perturb() is one pass and the options ask for {passes} a step "
                f"(samples={self._option('samples')}, "
                f"antithetic={self._option('antithetic')}, clean_weight={self._option('clean_weight')}). "
                "Use `for _ in opt.perturbations():`."
            )
        return Perturbation(self)

    @untraced
    def perturbations(self, *inputs: Any) -> Iterator[Any]:
        """Runs the loop body once a pass of a step; then p.grad holds its old value plus the mean gradient.

        There are `samples` passes, twice as many with `antithetic` (+noise, then -noise), one more at the
        clean weights where `clean_weight` > 0. All samples of a step share one draw. Do not zero gradients
        inside the loop.

        Args:
            *inputs: tensors (or dicts, lists, tuples of tensors) with the examples along dimension 0. They
                are split over the passes, as LPF-SGD does (K draws at the cost of one gradient), and each
                part's gradient is weighted by its share of the examples. With fewer examples than passes, the
                first passes take one each.

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
        self._check_pass()
        passes = passes_of(self.param_groups[0])
        bounds: list[int] = []
        if inputs:
            total = examples_in(inputs)
            passes = passes[:total]
            bounds = bounds_of(total, len(passes))
        shares = [float(b - a) for a, b in pairwise(bounds)] or [1.0] * len(passes)
        weights = weights_of(passes, float(self._option("clean_weight")), shares)
        scale = 1.0  # p.grad holds the sum so far divided by this
        held = HeldGradients()
        try:
            for k, (one, weight) in enumerate(zip(passes, weights, strict=True)):
                self._hold(held, scale)
                if weight != scale:
                    self._scale_grads(scale / weight)
                    scale = weight
                with Perturbation(self, one, last=False):
                    yield part_of(inputs, bounds[k], bounds[k + 1]) if inputs else k
        finally:
            self._hold(held, scale)
            if scale != 1.0:
                self._scale_grads(scale)
            self._put_back(held)
            self._advance()

    @untraced  # what a generator calls is traced on its own
    def _advance(self) -> None:
        self._noise.generator.advance()

    @untraced
    def _hold(self, held: HeldGradients, weight: float) -> None:
        """Takes up the 16-bit gradients of the last pass."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.dtype in HALF:
                    held.take(p, weight)

    @untraced
    def _put_back(self, held: HeldGradients) -> None:
        held.put_back()

    @untraced
    def _scale_grads(self, factor: float) -> None:
        with_grad = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        for p in with_grad:
            if p.grad.layout != torch.strided:  # in place an uncoalesced one would stay as it is
                p.grad = p.grad.detach() * factor
        grads = [p.grad.detach() for p in with_grad if p.grad.layout == torch.strided]
        if grads:
            torch._foreach_mul_([local_of(grad) for grad in grads], factor)

    # -- step ------------------------------------------------------------------------------------------------

    @hooked_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the clean weights.

        Args:
            closure: clears gradients, computes the loss, calls backward and returns the loss. It is run at
                perturbed weights, once for each pass, with gradients enabled. With several passes their sum is a
                second copy of the gradients meanwhile; `perturbations()` needs none, but for 16-bit ones (in float32).

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
        elif not self._fresh and self._noisy() and not self._idle() and not self._without_gradients():
            self._noise.placed()  # as in _step_kept
            raise RuntimeError(
                "step() without a gradient at perturbed weights since the last step: this would train without noise. "
                f"{EMPTY_PASS if self._pass_without_gradient else ''}{WAYS}"
            )
        self._look_for_gradients()
        self._update()
        self._clipping.report()
        self._fresh = self._cleared = self._emptied = self._pass_without_gradient = False
        return loss

    def _idle(self) -> bool:
        """Whether every lr is 0: a step then trains nothing (checkpoint tools make one to create state)."""
        return all(map(lr_is_zero, self.param_groups))

    def _without_gradients(self) -> bool:
        """Whether a pass has left no gradient at all: a step then moves nothing."""
        return self._pass_without_gradient and first_gradient(self.param_groups) is None

    def _step_kept(self, closure: Callable[[], Any] | None) -> Any:
        if not self._training and not self._idle():
            self._noise.placed()  # says so where DeepSpeed's tensors have come instead: train() would not help then
            raise RuntimeError(
                "step() on an optimizer with keep_perturbed=True that is in eval: call opt.train() before "
                "the first "
                "forward pass (again after construction, load_state_dict() and opt.eval()), so that "
                "gradients are "
                "taken at perturbed weights."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._training:
            self._update()
            return loss
        self._look_for_gradients()
        try:
            self._update_and_perturb()
            self._noise.generator.advance()
        except BaseException:
            # Half of the tensors may hold the old noise: nobody should train on with that.
            self._training = False
            self._noise.restore_surely()
            raise
        self._clipping.report()
        return loss

    def _run_closure(self, closure: Callable[[], Any]) -> Any:
        passes = passes_of(self.param_groups[0])
        if len(passes) == 1:
            held = None if self._fresh or self._cleared else first_gradient(self.param_groups)
            with Perturbation(self, by_closure=True), torch.enable_grad():
                loss = closure()
            if held is not None and not self._cleared and held is first_gradient(self.param_groups):
                self._warn_of_clean_gradients()
            return loss
        self._check_pass()
        weights = weights_of(passes, float(self._option("clean_weight")), [1.0] * len(passes))
        mean_loss: Any = None
        total = HeldGradients()
        # What p.grad holds now counts in full unless the closure clears it, as closures do: it goes in with
        # the first pass, divided by that pass's weight.
        self._scale_grads(1.0 / weights[0])
        try:
            for one, weight in zip(passes, weights, strict=True):
                with Perturbation(self, one, last=False, by_closure=True), torch.enable_grad():
                    loss = closure()
                if loss is not None and not isinstance(loss, Tensor | numbers.Real):
                    raise TypeError(
                        f"the closure returned a {type(loss).__name__}; expected its loss, a tensor or a number, or "
                        f"None: the options ask for {len(passes)} passes, whose losses are averaged."
                    )
                for group in self.param_groups:
                    for p in group["params"]:
                        total.take(p, weight)
                if loss is not None:
                    part = loss.detach() * weight if isinstance(loss, Tensor) else loss * weight
                    mean_loss = part if mean_loss is None else mean_loss + part
        finally:
            if not total:  # the first pass failed
                self._scale_grads(weights[0])
            total.put_back()
            self._noise.generator.advance()
        return mean_loss

    def _look_for_gradients(self) -> None:
        if (
            not self._warned_of_no_gradients
            and first_gradient(self.param_groups) is None
            and in_process_group()
            and self._noisy()
        ):
            self._warned_of_no_gradients = True
            warn_of_no_gradients()

    def _warn_of_clean_gradients(self) -> None:
        """A loop that accumulates outside of step(closure) would train on half its noise, in silence."""
        if self._warned_of_clean_gradients or not self._noisy():
            return
        self._warned_of_clean_gradients = True
        warnings.warn(
            "step(closure) added to gradients that were there before and were not taken at perturbed weights: "
            "the closure cleared none. A framework that accumulates gradients runs part of its backward passes "
            "outside of step(closure); construct the optimizer with keep_perturbed=True for it. If they are "
            "those of the last step, call opt.zero_grad() in the closure.",
            UserWarning,
            stacklevel=4,
        )

    # -- keep_perturbed: train and eval ----------------------------------------------------------------------

    @untraced
    def train(self, mode: bool = True) -> None:
        """With keep_perturbed, perturbs the weights for training; otherwise moves nothing.

        Call it once before the first forward pass, and again after `eval()` or `load_state_dict()`.
        """
        if not mode:
            self.eval()
            return
        self._settle()
        self._noise_on()

    def _noise_on(self) -> None:
        """What train() does, less a wrapped optimizer's own modes."""
        if not self._option("keep_perturbed") or self._training:
            return
        try:
            self._noise.apply()
            self._training = True
        except BaseException:
            self._training = False
            self._noise.restore_surely()
            raise

    @untraced
    def eval(self) -> None:
        """With keep_perturbed, puts the clean weights back, to evaluate and save; otherwise moves nothing."""
        self._settle()
        self._noise_off()

    def _noise_off(self) -> None:
        """What eval() does, less a wrapped optimizer's own modes."""
        if self._training or (self._noise.active and not self._inside_pass):
            self._training = False
            self._noise.restore_surely()

    def _modes(self) -> tuple[bool, bool]:
        """Whether the weights are kept perturbed, and whether a wrapped optimizer with modes of its own is in train."""
        return self._training, False

    def _resume(self, training: bool, base_in_train: bool) -> None:
        """Back into these modes, from eval."""
        if training:
            self.train()

    @untraced  # PyTorch 2.10's tracer cannot set an attribute of an optimizer
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim's; the next `step()` then needs a new gradient at perturbed weights."""
        if set_to_none:
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = None
        else:
            super().zero_grad(set_to_none)
        self._fresh = False
        self._cleared, self._emptied = not set_to_none, set_to_none
        if self._watched:  # inside of a pass, which starts anew
            self._watch = GradientWatch(self.param_groups, set_to_none, self._witness)
