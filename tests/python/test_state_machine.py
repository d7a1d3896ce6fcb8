"""Random walks through everything that drives an optimizer, each step checked against a slow model of it: clean bits,
perturbed bits and draws are always right.

The model keeps clean weights and momentum of its own and calls the operators one tensor at a time; what is on trial is
the state that SSAM keeps between calls. 40 walks of 30 steps here; `make stress` takes TORCH_SSAM_STRESS times as
many, each time others.
"""

from __future__ import annotations

import copy
import io
import pickle
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import front_helpers as front
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from odd_values import STRESS
from torch import Tensor, nn

import torch_ssam

OPS = torch.ops.torch_ssam
SHAPES = ((7, 5), (3,), (), (0,), (2, 3, 4), (33,))
LR, STD = (0.0, 0.03, 0.25), (0.0, 0.125, 0.5)


class Interrupted(Exception):
    """Raised by a loop body."""


def loss_of(weights: list[Tensor]) -> Tensor:
    """Couples all tensors; the same function gives the model its gradients, so they agree in every bit."""
    total = torch.stack([w.sum() for w in weights]).sum()
    return torch.tanh(total / 8) + sum(((k + 1) * w.square() - w).sum() / 4 for k, w in enumerate(weights))


def initial(shape: tuple[int, ...], number: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


class Model:
    """What an optimizer should have done. Options are read from its groups: they are input, not state."""

    def __init__(self, seed: int) -> None:
        self.seed, self.draw = seed, 0
        self.clean: list[Tensor] = []
        self.momentum: dict[int, Tensor] = {}
        self.averages: dict[int, list[Any]] = {}  # AdamW's: step, averages, the largest
        self.frozen: set[int] = set()
        self.held: dict[
            int, tuple[int, float, str]
        ] = {}  # draw, std and distribution that a tensor holds now

    def add(self, weights: Tensor) -> None:
        self.clean.append(weights.clone())

    def noisy(
        self, i: int, draw: int, std: float, distribution: str, sample: int = 0, negate: bool = False
    ) -> Tensor:
        generator = torch.tensor([self.seed, draw])
        noisy: Tensor = OPS.perturbed(self.clean[i], generator, i, std, distribution, sample, negate)
        return noisy

    def expected(self) -> list[Tensor]:
        """What the parameters hold now."""
        return [
            self.noisy(i, *self.held[i]) if i in self.held else clean for i, clean in enumerate(self.clean)
        ]

    def places(self, groups: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int]]:
        place = 0
        for group in groups:
            for _ in group["params"]:
                yield group, place
                place += 1

    def gradients(self, at: list[Tensor]) -> list[Tensor | None]:
        leaves = [w.detach().clone().requires_grad_(i not in self.frozen) for i, w in enumerate(at)]
        if len(self.frozen) < len(leaves):
            loss_of(leaves).backward()
        return [leaf.grad for leaf in leaves]

    def mean_gradient(self, groups: list[dict[str, Any]]) -> list[Tensor | None]:
        first = groups[0]
        signs = (False, True) if first["antithetic"] else (False,)
        passes = [(k, negate) for k in range(first["samples"]) for negate in signs]
        m = first["clean_weight"]
        total: list[Tensor | None] = [None] * len(self.clean)
        points = []
        for sample, negate in passes:
            at = list(self.clean)
            for group, i in self.places(groups):
                if i not in self.frozen and group["noise_std"] > 0:
                    at[i] = self.noisy(
                        i, self.draw, group["noise_std"], group["distribution"], sample, negate
                    )
            points.append((at, (1 - m) / len(passes)))
        if m > 0:
            points.append((self.clean, m))
        for at, weight in points:  # weights are powers of 2: sums do not depend on when they are applied
            for i, g in enumerate(self.gradients(at)):
                if g is not None:
                    before = total[i]
                    total[i] = weight * g if before is None else before + weight * g
        return total

    def update(self, groups: list[dict[str, Any]], gradients: list[Tensor | None]) -> None:
        for group, i in self.places(groups):
            g = gradients[i]
            if g is None:
                continue
            self.clean[i] = self.clean[i].clone()
            if "betas" in group:
                step, *averages = self.averages.setdefault(i, [0, *(torch.zeros_like(g) for _ in range(3))])
                self.averages[i][0] = step + 1
                averages = averages[: 3 if group["amsgrad"] else 2]
                names = ("eps", "weight_decay", "amsgrad", "maximize")
                numbers = [group["lr"], *group["betas"], *(float(group[name]) for name in names)]
                OPS.update_([self.clean[i]], [g], averages, "adamw", numbers, steps=[step + 1])
                continue
            buffers, first = [], False
            if group["momentum"] != 0:
                first = i not in self.momentum
                buffers = [self.momentum.setdefault(i, torch.zeros_like(g))]
            names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
            numbers = [float(group[name]) for name in names]
            OPS.update_([self.clean[i]], [g], buffers, "sgd", numbers, steps=[1] if first else None)
        for group in groups:
            if group["radius"] is not None:
                mine = [i for other, i in self.places(groups) if other is group and i not in self.frozen]
                for i in mine:
                    self.clean[i] = self.clean[i].clone()
                if mine:
                    OPS.project_([self.clean[i] for i in mine], group["radius"])

    def hold(self, groups: list[dict[str, Any]]) -> None:
        """keep_perturbed: every trainable tensor holds the noise of the current draw."""
        self.held = {
            i: (self.draw, group["noise_std"], group["distribution"])
            for group, i in self.places(groups)
            if i not in self.frozen and group["noise_std"] > 0
        }


class OptimizerMachine(RuleBasedStateMachine):
    """One optimizer on a walk, and the model beside it."""

    kind: Any  # SSAM or SSAMAdamW
    opt: Any
    params: list[nn.Parameter]
    model: Model

    @initialize(
        dtype=st.sampled_from((torch.float32, torch.float64)),
        sizes=st.lists(st.integers(0, len(SHAPES) - 1), min_size=2, max_size=4),
        adamw=st.booleans(),
        amsgrad=st.booleans(),
        momentum=st.sampled_from((0.0, 0.9)),
        nesterov=st.booleans(),
        weight_decay=st.sampled_from((0.0, 0.01)),
        distribution=st.sampled_from(("gaussian", "rademacher")),
        keep=st.booleans(),
        samples=st.sampled_from((1, 1, 2)),
        antithetic=st.booleans(),
        clean_weight=st.sampled_from((0.0, 0.0, 0.5)),
        radius=st.sampled_from((None, None, 2.0)),
        maximize=st.booleans(),
        seed=st.integers(-(2**63), 2**63 - 1),
    )
    def begin(
        self,
        dtype: torch.dtype,
        sizes: list[int],
        adamw: bool,
        amsgrad: bool,
        keep: bool,
        seed: int,
        nesterov: bool,
        **options: Any,
    ) -> None:
        self.shapes = [SHAPES[k] for k in sizes]
        self.params = [nn.Parameter(initial(shape, k, dtype)) for k, shape in enumerate(self.shapes)]
        self.model = Model(seed)
        for p in self.params:
            self.model.add(p.detach())
        if keep:
            options.update(samples=1, antithetic=False, clean_weight=0.0)
        self.keep = keep
        momentum = options.pop("momentum")
        if adamw:
            options.update(amsgrad=amsgrad, betas=(momentum, 0.95))
        else:
            options.update(momentum=momentum, nesterov=nesterov and momentum > 0)
        self.kind = torch_ssam.SSAMAdamW if adamw else torch_ssam.SSAM
        self.opt = self.kind(self.params, lr=0.03, noise_std=0.125, keep_perturbed=keep, seed=seed, **options)
        self.training = False

    # -- what the rules share --------------------------------------------------------------------------------

    def backward(self) -> None:
        if len(self.model.frozen) < len(self.params):
            loss_of(list(self.params)).backward()

    def train_if_kept(self) -> None:
        if self.keep and not self.training:
            self.opt.train()
            self.training = True
            self.model.hold(self.opt.param_groups)

    def passes(self) -> int:
        first = self.opt.param_groups[0]
        return first["samples"] * (2 if first["antithetic"] else 1) + (first["clean_weight"] > 0)

    def gradient_of_model(self) -> list[Tensor | None]:
        if self.keep:
            return self.model.gradients(self.model.expected())
        return self.model.mean_gradient(self.opt.param_groups)

    def model_steps(self, gradients: list[Tensor | None]) -> None:
        self.model.update(self.opt.param_groups, gradients)
        if self.keep:
            self.model.draw += 1
            self.model.hold(self.opt.param_groups)

    def model_passes(self) -> None:
        if not self.keep:
            self.model.draw += 1

    def take_gradient(self, way: str) -> None:
        if self.keep:
            self.backward()
        elif way == "perturb" and self.passes() == 1:
            with self.opt.perturb():
                self.backward()
        else:
            for _ in self.opt.perturbations():
                self.backward()

    # -- training --------------------------------------------------------------------------------------------

    @rule(way=st.sampled_from(("perturb", "closure", "perturbations")), to_none=st.booleans())
    def step(self, way: str, to_none: bool) -> None:
        self.train_if_kept()
        gradients = self.gradient_of_model()
        if way == "closure":

            def closure() -> Tensor:
                self.opt.zero_grad(set_to_none=True)
                self.backward()
                return torch.zeros(())

            self.opt.step(closure)
        else:
            self.take_gradient(way)
            self.opt.step()
        self.model_passes()
        self.model_steps(gradients)
        self.opt.zero_grad(set_to_none=to_none)
        if not to_none:  # gradients of zeros count as gradients: they would move momentum
            self.opt.zero_grad()

    @rule(way=st.sampled_from(("perturb", "perturbations")), infinite=st.booleans())
    def step_through_a_scaler(self, way: str, infinite: bool) -> None:
        if len(self.model.frozen) == len(self.params):
            return
        self.train_if_kept()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        gradients = self.gradient_of_model()

        def backward() -> None:
            loss = loss_of(list(self.params))
            scaler.scale(loss * float("inf") if infinite else loss).backward()

        self.backward, plain = backward, self.backward  # type: ignore[method-assign]
        try:
            self.take_gradient(way)
        finally:
            self.backward = plain  # type: ignore[method-assign]
        found = any(p.grad is not None and not bool(p.grad.isfinite().all()) for p in self.params)
        scaler.step(self.opt)
        scaler.update()
        self.model_passes()
        if not found:
            self.model_steps(gradients)
        self.opt.zero_grad()

    @rule(way=st.sampled_from(("perturb", "closure", "perturbations")), by_signal=st.booleans())
    def interrupted(self, way: str, by_signal: bool) -> None:
        """An exception, or Ctrl-C, in the middle of a pass."""
        self.train_if_kept()

        def body() -> Any:
            self.backward()
            if by_signal:
                signal.raise_signal(signal.SIGINT)
            raise Interrupted

        with pytest.raises((Interrupted, KeyboardInterrupt)):  # noqa: PT012
            if way == "closure" or self.keep:
                self.opt.step(body)
            elif way == "perturb" and self.passes() == 1:
                with self.opt.perturb():
                    body()
            else:
                for _ in self.opt.perturbations():
                    body()
        self.model_passes()
        self.opt.zero_grad()

    @rule(which=st.integers(0, 9))
    def somebody_else_writes(self, which: int) -> None:
        """Written weights stay, all others are restored, and the parameter is named."""
        i = which % len(self.params)
        p = self.params[i]
        self.train_if_kept()
        groups = [group for group, _ in self.model.places(self.opt.param_groups)]
        noisy = i not in self.model.frozen and groups[i]["noise_std"] > 0
        if p.numel() == 0 or (self.keep and i not in self.model.held):
            return
        if self.keep:
            with torch.no_grad():
                p.add_(1.0)
            now = p.detach().clone()
            self.backward()
            with pytest.raises(torch_ssam.PerturbedWeightsChanged, match=f"Parameter {i} "):
                self.opt.step()
            self.training, self.model.held = False, {}
        elif noisy and self.passes() == 1:
            with pytest.raises(torch_ssam.PerturbedWeightsChanged, match=f"Parameter {i} "):  # noqa: PT012, SIM117
                with self.opt.perturb(), torch.no_grad():
                    p.add_(1.0)
                    now = p.detach().clone()
            self.model.draw += 1
        else:
            return
        self.model.clean[i] = now
        self.opt.zero_grad()

    # -- train, eval, evaluating -----------------------------------------------------------------------------

    @rule(train=st.booleans())
    def train_or_eval(self, train: bool) -> None:
        if train:
            self.train_if_kept()
            self.opt.train()  # again moves nothing
        else:
            self.opt.eval()
            self.training, self.model.held = False, {}

    @rule()
    def evaluate_clean(self) -> None:
        with self.opt.clean_weights():
            assert front.same_bits(self.params, self.model.clean)
        if self.training:  # the noise of the same draw, by the options of now
            self.model.hold(self.opt.param_groups)

    @rule()
    def refused(self) -> None:
        """Calls out of order change nothing."""
        if not self.keep:
            with pytest.raises(RuntimeError, match="perturb"), self.opt.perturb():  # noqa: PT012
                if self.passes() == 1:
                    self.opt.step()
            self.model.draw += self.passes() == 1
            self.opt.zero_grad()
        else:
            with pytest.raises(RuntimeError, match="keep_perturbed"):
                self.opt.perturb().__enter__()

    # -- options and groups ----------------------------------------------------------------------------------

    @rule(which=st.integers(0, 9), lr=st.sampled_from(LR), std=st.sampled_from(STD))
    def edit_a_group(self, which: int, lr: float, std: float) -> None:
        group = self.opt.param_groups[which % len(self.opt.param_groups)]
        group["lr"], group["noise_std"] = lr, std

    @rule()
    def schedule(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a scheduler that begins after the optimizer
            scheduler = torch.optim.lr_scheduler.LambdaLR(self.opt, lambda epoch: 0.5**epoch)
            scheduler.step()
        for group in self.opt.param_groups:
            group.pop("initial_lr")

    @rule(which=st.integers(0, 9))
    def freeze_or_thaw(self, which: int) -> None:
        i = which % len(self.params)
        self.params[i].requires_grad_(i in self.model.frozen)
        self.model.frozen ^= {i}

    @precondition(lambda self: len(self.params) < 8)
    @rule(size=st.integers(0, len(SHAPES) - 1), lr=st.sampled_from(LR), std=st.sampled_from(STD))
    def add_a_group(self, size: int, lr: float, std: float) -> None:
        dtype = self.params[0].dtype
        p = nn.Parameter(initial(SHAPES[size], len(self.params), dtype))
        self.model.add(p.detach())
        self.params.append(p)
        self.opt.add_param_group({"params": [p], "lr": lr, "noise_std": std})
        if self.training:
            distribution = self.opt.param_groups[-1]["distribution"]
            # Noise switched on for another group waits for its next step, or for this: all that have none.
            for group, i in self.model.places(self.opt.param_groups):
                if i not in self.model.held and i not in self.model.frozen and group["noise_std"] > 0:
                    self.model.held[i] = (self.model.draw, group["noise_std"], distribution)

    # -- saving, loading, moving -----------------------------------------------------------------------------

    @rule(clean_model=st.booleans(), perturbed_first=st.booleans())
    def save_and_load(self, clean_model: bool, perturbed_first: bool) -> None:
        """Into new objects, with weights_only; the model's weights saved clean or as they are."""
        was_training = self.training
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights saved while perturbed
            weights = self.model.clean if clean_model else front.snapshot(self.params)
            file = io.BytesIO()
            torch.save({"model": list(weights), "opt": self.opt.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        structure = [len(group["params"]) for group in self.opt.param_groups]
        params = [nn.Parameter(torch.zeros_like(w)) for w in saved["model"]]
        for i in self.model.frozen:
            params[i].requires_grad_(False)
        rest = iter(params)
        first = self.opt.param_groups[0]
        opt = self.kind(
            [{"params": [next(rest) for _ in range(count)]} for count in structure],
            seed=1,
            keep_perturbed=self.keep,
            samples=first["samples"],
            antithetic=first["antithetic"],
            clean_weight=first["clean_weight"],
        )
        if perturbed_first:
            opt.train()
        with torch.no_grad():
            if not perturbed_first:
                for p, w in zip(params, saved["model"], strict=True):
                    p.copy_(w)
            opt.load_state_dict(saved["opt"])
            if perturbed_first:
                for p, w in zip(params, saved["model"], strict=True):
                    p.copy_(w)
        self.opt, self.params, self.training = opt, params, False
        opt.eval()
        self.model.held = {}
        if was_training:
            self.train_if_kept()

    @rule(by=st.sampled_from((copy.deepcopy, lambda whole: pickle.loads(pickle.dumps(whole)))))
    def copy_everything(self, by: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.params, self.opt = by((self.params, self.opt))

    @rule()
    def change_dtype(self) -> None:
        self.opt.eval()
        self.training, self.model.held = False, {}
        dtype = torch.float32 if self.params[0].dtype == torch.float64 else torch.float64
        holder = nn.ParameterList(self.params)
        holder.to(dtype)
        self.opt.zero_grad()
        self.opt.load_state_dict(self.opt.state_dict())  # casts momentum, as torch's optimizers do
        self.model.clean = [w.to(dtype) for w in self.model.clean]
        self.model.momentum = {i: m.to(dtype) for i, m in self.model.momentum.items()}
        self.model.averages = {
            i: [step, *(a.to(dtype) for a in averages)]
            for i, (step, *averages) in self.model.averages.items()
        }

    # -- always ----------------------------------------------------------------------------------------------

    @invariant()
    def everything_is_right(self) -> None:
        if not hasattr(self, "opt"):
            return
        assert front.same_bits(self.params, self.model.expected())
        assert self.opt.draw == self.model.draw
        for i, p in enumerate(self.params):
            entry = self.opt.state.get(p, {})
            if self.kind is torch_ssam.SSAMAdamW:
                step, *averages = self.model.averages.get(i, [0])
                assert entry.get("step", 0) == step
                names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
                kept = [entry[name] for name in names if name in entry]
                assert front.same_bits(kept, averages[: len(kept)])
                assert (len(kept) >= 2) == (step > 0)
                continue
            buffer = entry.get("momentum_buffer")
            assert (buffer is None) == (i not in self.model.momentum)
            assert buffer is None or front.same_bits([buffer], [self.model.momentum[i]])

    def teardown(self) -> None:
        if hasattr(self, "opt"):
            self.opt.eval()
            assert front.same_bits(self.params, self.model.clean)


TestOptimizer = OptimizerMachine.TestCase
TestOptimizer.settings = settings(
    max_examples=40 * STRESS,
    stateful_step_count=30,
    deadline=None,
    derandomize=STRESS == 1,
    suppress_health_check=list(HealthCheck),
)
