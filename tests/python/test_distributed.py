"""DistributedDataParallel over gloo, two processes: the ranks end in the same bits in every way of driving, also where
their random states differ, and in the numbers of one process with the whole batch. test_peers.py, rows 4 and 25.
"""

from __future__ import annotations

from typing import Any

import ddp_program
import front_helpers as front
import pytest
import torch
from ranks import run_ranks
from torch import Tensor

Rank = dict[str, list[Tensor]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Rank]:
    folder = tmp_path_factory.mktemp("ddp")
    run_ranks("ddp_program.py", 2, str(folder))
    return [torch.load(folder / f"rank{k}.pt", weights_only=True) for k in range(2)]


def one_process(way: str, seed: int) -> list[Tensor]:
    """The same training with the whole batch; no_sync's micro-batches as one batch each."""
    model = front.Net()
    opt = ddp_program.make(way, model)
    opt._noise.generator.set(seed, 0)
    todo = front.batches(4)
    opt.train()
    if way == "no_sync":
        for k in range(0, 4, 2):
            opt.zero_grad()
            for x, y in todo[k : k + 2]:
                (front.loss_of(model, x, y) / 2).backward()
            opt.step()
        opt.eval()
    else:
        ddp_program.train(way, opt, model, todo)
    return front.snapshot(model)


@pytest.mark.parametrize("way", ddp_program.WAYS)
def test_the_ranks_end_in_the_same_bits_and_agree_on_the_seed(ranks: list[Rank], way: str) -> None:
    first, second = ranks
    assert front.same_bits(first[way], second[way])
    assert front.same_bits(first["seed " + way], second["seed " + way])
    for end, start in zip(first[way], front.Net().parameters(), strict=False):
        assert not torch.equal(end, start)


@pytest.mark.parametrize("way", [way for way in ddp_program.WAYS if way != "per_rank"])
def test_two_ranks_are_one_process_with_the_whole_batch(ranks: list[Rank], way: str) -> None:
    expected = one_process(way, int(ranks[0]["seed " + way][0][0]))
    for ours, own in zip(ranks[0][way], expected, strict=False):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)


def test_noise_per_rank_is_that_of_seed_plus_rank_and_the_mean_gradient_is_over_both(
    ranks: list[Rank],
) -> None:
    clean = front.snapshot(front.Net())
    for k, rank in enumerate(ranks):
        for place, (noisy, w) in enumerate(zip(rank["noise of per_rank"], clean, strict=True)):
            assert front.same_bits([noisy], [front.expected_noise(w, 7 + k, 0, place, 0.3)])

    model = front.Net()
    plain = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for draw, (x, y) in enumerate(front.batches(4), start=1):  # draw 0 was looked at above
        grads: list[Any] = []
        for k in range(2):
            noisy = front.Net()
            with torch.no_grad():
                for place, (q, w) in enumerate(zip(noisy.parameters(), model.parameters(), strict=True)):
                    q.copy_(front.expected_noise(w, 7 + k, draw, place, 0.3))
            front.loss_of(noisy, x[k::2], y[k::2]).backward()
            grads.append([q.grad for q in noisy.parameters()])
        for p, a, b in zip(model.parameters(), *grads, strict=True):
            p.grad = (a + b) / 2
        plain.step()
    for ours, own in zip(ranks[0]["per_rank"], model.parameters(), strict=False):
        torch.testing.assert_close(ours, own.detach(), rtol=1e-4, atol=1e-5)


def test_noise_per_rank_in_one_process_is_the_plain_noise_and_resumes() -> None:
    model, other = front.Net(), front.Net()
    opt, plain = front.ssam(model, noise_per_rank=True), front.ssam(other)
    for one, net in ((opt, model), (plain, other)):
        front.by_perturb(one, net, front.batches(2))
    assert front.same_bits(model.parameters(), other.parameters())
    opt.load_state_dict(plain.state_dict())
    assert (opt.seed, opt.draw) == (7, 2)


@pytest.mark.parametrize("kind", ["ssam", "wrap"])
def test_noise_per_rank_before_the_process_group_is_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    make = front.ssam if kind == "ssam" else front.wrapped_adamw
    with pytest.raises(RuntimeError, match="init_process_group"):
        make(front.Net(), noise_per_rank=True)
    with pytest.raises(TypeError, match="noise_per_rank"):
        make(front.Net(), noise_per_rank=1)
