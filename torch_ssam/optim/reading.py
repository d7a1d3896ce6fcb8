"""What can be read of a noise optimizer and its weights, whatever these hold now: clean weights, what the noise does.

`base.py` drives it. Tests: test_clean_weights.py, test_metrics.py, test_weight_clip.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torch_ssam.noise.scope import Scope
from torch_ssam.ops.untraced import untraced
from torch_ssam.optim import attached
from torch_ssam.optim.checkpoints import NoiseOptimizer
from torch_ssam.optim.clean_weights import CleanWeights, check_model
from torch_ssam.optim.metrics import all_metrics


class ReadableOptimizer(NoiseOptimizer):
    """A noise optimizer as those see it who evaluate, save and log."""

    _noticed_eval = False  # whether an attached model in eval mode was warned of

    if TYPE_CHECKING:  # what a driver has

        def _modes(self) -> tuple[bool, bool]: ...
        def _resume(self, training: bool, base_in_train: bool) -> None: ...
        def _noise_on(self) -> None: ...
        def _noise_off(self) -> None: ...
        def _settle(self) -> None: ...
        def eval(self) -> None: ...

    @property
    def clipped_share(self) -> float | None:
        """The share of weights that the first step with weight_clip clipped, among those of the tensors that it clips.

        None before that step. Of DTensors this rank's parts count.

        Example:
            >>> import torch, torch_ssam
            >>> w = torch.nn.Parameter(torch.tensor([[1.0] * 199 + [5.0]]))
            >>> opt = torch_ssam.SSAM([w], lr=0.1, noise_std=0.0, weight_clip=1.5)
            >>> w.grad = torch.zeros(1, 200)
            >>> opt.step()
            >>> round(w[0, -1].item(), 4), opt.clipped_share
            (1.5875, 0.005)
        """
        return self._clipping.share

    def _clean_of(self, param: Tensor) -> Tensor:
        """The clean weights of a parameter, also those that a loaded state_dict carried."""
        pending = self._pending_clean.get(param)
        return self._noise.clean_of(param).to(param.dtype) if pending is None else pending

    def clean_weights(self) -> Scope:
        """Context in which the parameters hold the clean weights; leaving puts the noise of the same draw back.

        Where noise_std or the set of trainable parameters changed meanwhile, it follows.

        For evaluating, averaging (EMA) and saving in the middle of training with keep_perturbed; without it
        the weights are clean outside of passes anyway, and nothing moves.

        Raises:
            RuntimeError: inside `perturb()`.

        Example:
            >>> import torch, torch_ssam
            >>> model = torch.nn.Linear(2, 1)
            >>> opt = torch_ssam.SSAM(model.parameters(), noise_std=0.1, keep_perturbed=True)
            >>> average = torch.optim.swa_utils.AveragedModel(model)
            >>> opt.train()
            >>> with opt.clean_weights():
            ...     average.update_parameters(model)
        """
        return CleanWeights(self)

    def clean_state_dict(self, model: nn.Module) -> dict[str, Any]:
        """model.state_dict() with clean weights, whatever the parameters hold now.

        Example:
            >>> import torch, torch_ssam
            >>> model = torch.nn.Linear(2, 1)
            >>> before = model.weight.detach().clone()
            >>> opt = torch_ssam.SSAM(model.parameters(), noise_std=0.1, keep_perturbed=True)
            >>> opt.train()
            >>> torch.equal(opt.clean_state_dict(model)["weight"], before)
            True
        """
        check_model("clean_state_dict", model)
        self._hands_out_clean = True
        handles = attached.hand_out_clean(model, self)
        try:
            state_dict: dict[str, Any] = model.state_dict()
        finally:
            for handle in handles:
                handle.remove()
        return state_dict

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """From now on what is saved or copied of the model has clean weights in it, also while it holds noise.

        For frameworks that save, copy and evaluate at moments of their own while weights are kept perturbed:
        `model.state_dict()`, `copy.deepcopy(model)` and `torch.save(model)`, of the model and of any part of it, are
        clean. The first forward pass of the model in eval mode while the optimizer is in train warns; inside a region of
        torch.compile it does not. `model.state_dict(keep_vars=True)` holds the parameters themselves. A module's own
        `__deepcopy__` or `__reduce__` that reads weights other than by copying its parameters reads what is there.

        Returns:
            Handles; `remove()` of each detaches it.

        Example:
            >>> import torch, torch_ssam
            >>> model = torch.nn.Linear(2, 1)
            >>> before = model.weight.detach().clone()
            >>> opt = torch_ssam.SSAM(model.parameters(), noise_std=0.1, keep_perturbed=True)
            >>> _ = opt.attach(model)
            >>> opt.train()
            >>> torch.equal(model.state_dict()["weight"], before), torch.equal(model.weight, before)
            (True, False)
        """
        check_model("attach", model)
        self._noise.placed()  # frameworks attach first: says so where the groups hold DeepSpeed's tensors
        self._hands_out_clean = True
        return attached.attach(model, self)

    @untraced
    def note_grad_norm(self, norm: Any, max_norm: float) -> None:
        """Notes the norm of a step's gradients before clipping, for `metrics()` to say how often they are clipped.

        Noise raises the norm. Costs two operations on one number, on its device, and waits for nothing.

        Args:
            norm: what `torch.nn.utils.clip_grad_norm_` (or Accelerate's) returns, a number or a tensor of one.
            max_norm: the bound that it was given, > 0.

        Raises:
            TypeError, ValueError: something else.

        Example:
            >>> import torch, torch_ssam
            >>> w = torch.nn.Parameter(torch.ones(4))
            >>> opt = torch_ssam.SSAM([w], noise_std=0.0)
            >>> (3 * w).sum().backward()
            >>> opt.note_grad_norm(torch.nn.utils.clip_grad_norm_([w], 1.0), 1.0)
            >>> found = opt.metrics()
            >>> found["grad_norm"], found["grad_clipped"]
            (6.0, 1.0)
        """
        self._gradient_norms.note(norm, max_norm)

    @untraced
    def metrics(self, loss: Callable[[], Any] | None = None) -> dict[str, float]:
        """What the noise does now, to be logged every so many steps; it leaves no trace.

        Costs a draw of noise and about four reads of the weights, a tensor at a time, and waiting for the result; with a
        loss two forwards besides.

        Args:
            loss: function without arguments that gives the loss on a batch, such as `lambda: criterion(model(x), y)`. It is
                called at the clean and at the noisy weights, without gradients, with the same random numbers.

        Returns:
            "noise_std": the largest of all groups. "noise_to_weight": norm of the noise over norm of the clean weights, over
            all tensors that get noise, of the next pass (or of the present one). "noise_rounded_away": the share of those
            weights that the noise leaves where they are, in their dtype. With a loss, "clean_loss", "noisy_loss" and
            "loss_rise", their difference; of this rank's batch. All 0 where there is no noise but the losses. Where
            `note_grad_norm` was called since the last `metrics()`, "grad_norm", the mean of what it noted, and
            "grad_clipped", the share of steps in which that was above the bound.

        Raises:
            RuntimeError: with a loss, inside `perturb()`; while a CUDA graph is captured.
            TypeError: the loss is no number.

        Example:
            >>> import torch, torch_ssam
            >>> w = torch.nn.Parameter(torch.ones(1000))
            >>> opt = torch_ssam.SSAM([w], noise_std=0.1, distribution="rademacher")
            >>> found = opt.metrics(lambda: w.square().mean())
            >>> round(found["noise_to_weight"], 6), found["noise_rounded_away"], found["clean_loss"]
            (0.1, 0.0, 1.0)
        """
        return all_metrics(self, loss)
