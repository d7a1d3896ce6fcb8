"""With master_dtype, what others write to a clean parameter counts, also where no version counter sees it: `p.data`, NumPy,
`vector_to_parameters`. Only the elements that were written lose the master's finer digits. In C++: test_api_masters.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ssam


def clamp(p: nn.Parameter) -> None:
    p.data.clamp_(-0.5, 0.5)


def fill(p: nn.Parameter) -> None:
    p.data[1].fill_(0.25)


def index(p: nn.Parameter) -> None:
    p.data[0, 1] = -3.0


def through_numpy(p: nn.Parameter) -> None:
    view = p.detach().view(torch.int16).numpy()  # NumPy has no bfloat16; the memory is the same
    view[2, 0] = torch.tensor(7.0, dtype=p.dtype).view(torch.int16).item()


def vector(p: nn.Parameter) -> None:
    flat = torch.nn.utils.parameters_to_vector([p]).detach() * 0.5
    torch.nn.utils.vector_to_parameters(flat, [p])


WRITES: dict[str, Callable[[nn.Parameter], None]] = {
    "clamp_": clamp,
    "fill_": fill,
    "indexing": index,
    "NumPy": through_numpy,
    "vector_to_parameters": vector,
}


def make(dtype: torch.dtype, noise_std: float) -> tuple[nn.Parameter, Any]:
    generator = torch.Generator().manual_seed(3)
    p = nn.Parameter(torch.randn(5, 67, generator=generator).to(dtype))
    opt = torch_ssam.SSAM([p], lr=2.0**-9, noise_std=noise_std, seed=1, master_dtype=torch.float32)
    return p, opt


def train(p: nn.Parameter, opt: Any, steps: int) -> None:
    for _ in range(steps):
        with opt.perturb():
            p.grad = (p.detach() * 0.5 + 1.0).to(p.dtype)
        opt.step()


@pytest.mark.parametrize("noise_std", [0.0, 0.125])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("when", ["between steps", "before the step"])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_no_version_counts_is_kept(
    write: str, when: str, dtype: torch.dtype, noise_std: float
) -> None:
    p, opt = make(dtype, noise_std)
    train(p, opt, 3)
    master = opt.state_dict()["state"][0]["master"].clone()
    before, version = p.detach().clone(), p._version
    if when == "before the step":
        with opt.perturb():
            p.grad = torch.zeros_like(p)
        version = p._version
    WRITES[write](p)
    assert p._version == version or write == "vector_to_parameters"
    written = p.detach() != before
    assert written.any()
    expected = torch.where(written, p.detach().float(), master)
    if when == "between steps":
        with opt.perturb():
            p.grad = torch.zeros_like(p)
    opt.step()  # of zeros: what the master is after it is what it was before
    assert torch.equal(opt.state_dict()["state"][0]["master"], expected)
    assert torch.equal(p, expected.to(dtype))


def test_without_a_write_the_master_keeps_all_its_digits() -> None:
    p, opt = make(torch.bfloat16, 0.125)
    train(p, opt, 4)
    masters: Tensor = opt.state_dict()["state"][0]["master"]
    assert not torch.equal(masters, masters.to(p.dtype).float())
    twin, other = make(torch.bfloat16, 0.125)
    train(twin, other, 4)
    with other.perturb():
        pass
    assert torch.equal(other.state_dict()["state"][0]["master"], masters)


@pytest.mark.parametrize("n", [0, 1, 7, 63, 64, 65, 4097])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_follow_takes_what_was_written_and_leaves_the_rest(dtype: torch.dtype, n: int) -> None:
    clean = torch.randn(n, generator=torch.Generator().manual_seed(1))
    params = clean.to(dtype)
    params[::5] = (
        torch.tensor([float("nan"), 2.5, float("inf"), -0.0, 3.0]).to(dtype).repeat(n)[: len(params[::5])]
    )
    expected = torch.where(params == clean.to(dtype), clean, params.float())
    torch.ops.torch_ssam.follow_([clean], [params])
    assert torch.equal(clean.isnan(), expected.isnan())
    assert torch.equal(clean.nan_to_num(), expected.nan_to_num())
