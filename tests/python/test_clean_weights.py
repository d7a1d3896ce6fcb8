"""Clean weights while the parameters hold noise: what is saved, averaged and evaluated in the middle of training,
and BatchNorm statistics that belong to the weights they stand beside. test_peers.py, row 15.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

import torch_ssam

MAKERS: dict[str, Callable[..., Any]] = {"ssam": front.ssam, "wrap": front.wrapped_adamw}


def values_of(state_dict: dict[str, Any]) -> list[Tensor]:
    return [value.detach().clone() for value in state_dict.values()]


@pytest.fixture(params=sorted(MAKERS))
def training(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, list[Tensor]]:
    """A model in train with keep_perturbed after two steps, its optimizer, and the clean weights."""
    model = front.Net()
    opt = MAKERS[request.param](model, keep_perturbed=True)
    opt.train()
    front.by_stock_loop(opt, model, front.batches(2))
    twin_model, twin = copy.deepcopy((model, opt))
    twin.eval()
    return model, opt, front.snapshot(twin_model)


def test_clean_state_dict_is_clean_in_train_in_eval_and_inside_perturb(training: Any) -> None:
    model, opt, clean = training
    noisy = front.snapshot(model)
    assert not front.same_bits(noisy, clean)
    assert front.same_bits(values_of(opt.clean_state_dict(model)), clean)
    assert front.same_bits(model.parameters(), noisy)
    assert front.same_bits(values_of(model.state_dict()), noisy), "hooks were left behind"
    opt.eval()
    assert front.same_bits(values_of(opt.clean_state_dict(model)), clean)
    plain = front.ssam(model)
    with plain.perturb():
        assert front.same_bits(values_of(plain.clean_state_dict(model)), clean)


def test_an_attached_model_hands_out_clean_weights_whoever_asks(training: Any) -> None:
    model, opt, clean = training
    whole = nn.ModuleDict({"net": model, "other": nn.Linear(2, 2)})
    handles = opt.attach(model)
    assert front.same_bits(values_of(model.state_dict()), clean)
    assert front.same_bits(values_of(whole.state_dict())[:4], clean)
    live = model.state_dict(keep_vars=True)
    assert all(live[name] is p for name, p in model.named_parameters())
    for handle in handles:
        handle.remove()
    assert not front.same_bits(values_of(model.state_dict()), clean)


def test_an_attached_model_copies_and_pickles_and_its_twins_are_plain(training: Any) -> None:
    model, opt, _ = training
    opt.attach(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert front.same_bits(values_of(other.state_dict()), front.snapshot(other))
        with torch.no_grad():
            other.bias.fill_(3.0)
        assert front.same_bits([other.state_dict()["bias"]], [torch.full((7,), 3.0)])


def test_after_its_optimizer_is_gone_an_attached_model_is_plain() -> None:
    model = front.Net()
    opt = front.ssam(model)
    opt.attach(model)
    del opt
    assert front.same_bits(values_of(model.state_dict()), front.snapshot(model))


def test_tied_and_parametrized_weights_and_buffers_are_handed_out_under_every_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model.append(parametrizations.orthogonal(nn.Linear(4, 4)))
    clean = copy.deepcopy(model.state_dict())
    opt = front.ssam(model, keep_perturbed=True)
    opt.attach(model)
    opt.train()
    saved = model.state_dict()
    assert list(saved) == list(clean)
    assert front.same_bits(values_of(saved), values_of(clean))
    assert saved["0.weight"].data_ptr() == saved["2.weight"].data_ptr()
    assert not front.same_bits([model[0].weight], [clean["0.weight"]])


def test_a_loaded_checkpoint_is_handed_out_clean_before_it_is_written(training: Any) -> None:
    model, opt, clean = training
    opt.attach(model)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    with torch.no_grad():
        model.bias.fill_(9.0)  # what a perturbed checkpoint might have put there
    assert front.same_bits(values_of(model.state_dict()), clean)
    opt.train()
    opt.eval()
    assert front.same_bits(model.parameters(), clean)


def test_clean_weights_come_for_a_while_and_the_run_ends_in_the_same_bits() -> None:
    ends = []
    for looks in (True, False):
        model = front.Net()
        opt = front.ssam(model, keep_perturbed=True)
        opt.train()
        for x, y in front.batches(4):
            opt.zero_grad()
            front.loss_of(model, x, y).backward()
            if looks:  # between backward and step, the most awkward place
                noisy = front.snapshot(model)
                with opt.clean_weights():
                    expected = opt.clean_state_dict(model)
                    assert front.same_bits(model.parameters(), values_of(expected))
                    assert not front.same_bits(model.parameters(), noisy)
                assert front.same_bits(model.parameters(), noisy)
            opt.step()
        opt.eval()
        ends.append([*front.snapshot(model), *front.optimizer_bits(opt), torch.tensor(opt.draw)])
    assert front.same_bits(*ends)


def test_clean_weights_come_back_noisy_after_an_exception_and_in_eval_nothing_moves(training: Any) -> None:
    model, opt, clean = training
    noisy = front.snapshot(model)
    with pytest.raises(front.Alarm), opt.clean_weights():
        raise front.Alarm
    assert front.same_bits(model.parameters(), noisy)
    opt.eval()
    with opt.clean_weights():
        assert front.same_bits(model.parameters(), clean)
    assert front.same_bits(model.parameters(), clean)
    with pytest.raises(RuntimeError, match=r"opt\.train\(\)"):
        opt.step()


def test_clean_weights_inside_perturb_are_refused() -> None:
    model = front.Net()
    opt = front.ssam(model)
    with opt.perturb():
        with pytest.raises(RuntimeError, match="leave the pass first"), opt.clean_weights():
            pass
        with pytest.raises(RuntimeError, match="leave the pass first"):
            torch_ssam.update_bn([], model, opt)


def test_weights_written_to_in_train_are_named_when_clean_ones_are_asked_for(training: Any) -> None:
    model, opt, _ = training
    with torch.no_grad():
        model.bias.fill_(5.0)
    with pytest.raises(torch_ssam.PerturbedWeightsChanged, match="Parameter 1"), opt.clean_weights():
        pass
    assert bool((model.bias == 5.0).all())


def test_an_average_of_clean_weights_is_the_same_in_both_forms() -> None:
    averages = []
    for kept in (True, False):
        model = front.Net()
        opt = front.ssam(model, keep_perturbed=kept)
        ema = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
        opt.train()
        for batch in front.batches(4):
            (front.by_stock_loop if kept else front.by_perturb)(opt, model, [batch])
            with opt.clean_weights():
                ema.update_parameters(model)
        averages.append(front.snapshot(ema.module))
    assert front.same_bits(*averages)


# -- the warning ---------------------------------------------------------------------------------------------


def test_a_checkpoint_taken_while_perturbed_warns_once_and_says_what_to_do(training: Any) -> None:
    _, opt, _ = training
    with pytest.warns(torch_ssam.PerturbedWeightsSaved, match=r"clean_state_dict\(model\)"):
        opt.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.state_dict()
    plain = front.ssam(front.Net())
    with plain.perturb(), pytest.warns(torch_ssam.PerturbedWeightsSaved, match=r"inside perturb\(\)"):
        plain.state_dict()


@pytest.mark.parametrize("how", ["eval", "clean_state_dict", "attach", "outside"])
def test_there_is_no_warning_where_clean_weights_were_asked_for(how: str) -> None:
    model = front.Net()
    opt = front.ssam(model, keep_perturbed=how != "outside")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.train()
        if how == "eval":
            opt.eval()
        elif how != "outside":
            getattr(opt, how)(model)
        opt.state_dict()


@pytest.mark.parametrize(
    "call",
    [
        lambda opt: opt.clean_state_dict({}),
        lambda opt: opt.attach(None),
        lambda opt: torch_ssam.update_bn([], 3, opt),
        lambda opt: torch_ssam.frozen_batchnorm("x").__enter__(),
    ],
)
def test_what_is_no_module_is_refused(call: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"expected the torch\.nn\.Module"):
        call(front.ssam(front.Net()))


# -- BatchNorm -----------------------------------------------------------------------------------------------


def with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 3))


def buffers_of(model: nn.Module) -> list[Tensor]:
    return [b.detach().clone() for b in model.buffers()]


@pytest.mark.parametrize("kept", [False, True])
def test_update_bn_gathers_the_statistics_of_the_clean_weights(kept: bool) -> None:
    model = with_norm()
    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=1.0, seed=0, keep_perturbed=kept)
    opt.train()
    (front.by_stock_loop if kept else front.by_perturb)(opt, model, front.batches(3))
    noisy, gathered = front.snapshot(model), buffers_of(model)
    loader = [[x] for x, _ in front.batches(3)]
    torch_ssam.update_bn(loader, model, opt)
    assert front.same_bits(model.parameters(), noisy)
    opt.eval()
    expected = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(loader, expected)
    assert front.same_bits(buffers_of(model), buffers_of(expected))
    assert not torch.allclose(buffers_of(model)[0], gathered[0], rtol=0.1), "the noise made no difference"
    hidden = torch.cat([model[0](x) for x, _ in front.batches(3)])
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0).detach())


def test_update_bn_without_an_optimizer_is_torch_s() -> None:
    model = with_norm()
    torch_ssam.update_bn([front.data()[0]], model)
    assert int(model[1].num_batches_tracked) == 1
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_frozen_batchnorm_keeps_statistics_and_computes_the_same(training: bool) -> None:
    model, other = with_norm().train(training), with_norm().train(training)
    x, y = front.data()
    before = buffers_of(model)
    with torch_ssam.frozen_batchnorm(model):
        front.loss_of(model, x, y).backward()
    front.loss_of(other, x, y).backward()
    assert front.same_bits(buffers_of(model), before)
    assert front.same_bits([p.grad for p in model.parameters()], [p.grad for p in other.parameters()])
    front.loss_of(model, x, y)
    assert front.same_bits(buffers_of(model), buffers_of(other))


def test_frozen_batchnorm_ends_with_an_exception_and_leaves_layers_without_statistics_alone() -> None:
    model = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)])
    inside = []
    with contextlib.suppress(front.Alarm), torch_ssam.frozen_batchnorm(model):
        inside = [m.track_running_stats for m in model]
        raise front.Alarm
    assert inside == [False, False]
    assert [m.track_running_stats for m in model] == [True, False]


def test_frozen_in_noisy_passes_statistics_come_from_the_clean_one() -> None:
    model = with_norm()
    opt = torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=1.0, seed=0)
    twin = with_norm()
    for x, y in front.batches(3):
        opt.zero_grad()
        model(x)  # at the clean weights
        twin.load_state_dict({**model.state_dict(), **dict(twin.named_buffers())})
        twin(x)
        with opt.perturb(), torch_ssam.frozen_batchnorm(model):
            front.loss_of(model, x, y).backward()
        opt.step()
    assert front.same_bits(buffers_of(model), buffers_of(twin))
