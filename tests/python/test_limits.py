"""What docs/limits.md says of models that write to their weights, clip or round them. test_peers.py, rows 31, 36 and 37."""

from __future__ import annotations

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import torch_ssam
from torch_ssam import robustness


class Rounded(nn.Module):
    """A fake quantiser: weights in steps of a quarter."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ((weight * 4).round() / 4 - weight).detach()


def test_a_quantiser_in_the_forward_rounds_the_noisy_weights() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    parametrize.register_parametrization(layer, "weight", Rounded())
    opt = front.ssam(layer, noise_std=0.3)
    noisy = next(p for p in front.perturbed_copies(opt) if p.shape == (3, 5))
    with opt.perturb():
        assert front.same_bits([layer.weight.detach()], [Rounded()(noisy)])


def test_noise_inside_of_quantized_comes_after_the_rounding() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    clean = front.snapshot(layer)
    opt = front.ssam(layer, noise_std=0.3)
    with robustness.quantized(layer, 3):
        rounded = front.snapshot(layer)
        assert not front.same_bits(rounded, clean)
        expected = list(front.perturbed_copies(opt))
        with opt.perturb():
            assert front.same_bits(layer.parameters(), expected)
        assert front.same_bits(layer.parameters(), rounded)
    assert front.same_bits(layer.parameters(), clean)


@pytest.mark.parametrize("kept", [False, True])
def test_weights_clipped_through_data_count_where_they_are_clean(kept: bool) -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=kept, lr=0.01)
    opt.train()
    for x, y in front.batches(3):
        opt.zero_grad()
        if kept:
            front.loss_of(model, x, y).backward()
        else:
            with opt.perturb():
                front.loss_of(model, x, y).backward()
        opt.step()
        with opt.clean_weights():
            for p in model.parameters():
                p.data.clamp_(-0.1, 0.1)
    opt.eval()
    assert all(p.abs().max() <= 0.1 for p in model.parameters())
    assert any((p.abs() == 0.1).any() for p in model.parameters())


def test_max_norm_in_a_pass_is_named_and_what_it_wrote_is_kept() -> None:
    torch.manual_seed(0)
    words = nn.Embedding(4, 3, max_norm=0.5)
    opt = torch_ssam.SSAM(words.parameters(), noise_std=0.1, seed=0)
    with (
        pytest.raises(torch_ssam.PerturbedWeightsChanged, match=r"Parameter 0 of shape \(4, 3\)"),
        opt.perturb(),
    ):
        words(torch.tensor([0, 1])).sum().backward()
    assert torch.linalg.vector_norm(words.weight[:2], dim=1).max() <= 0.5 + 1e-6
