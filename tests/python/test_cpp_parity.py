"""C++ and Python runs from the same weights, data and seed end in the same bits, and each reads the other's files.

The C++ side is tests/cpp/consumer/parity.cpp: a project outside the tree, built against the installed package with
`torch_ssam.cmake_prefix_path`, as a user builds theirs. `make test` builds it beforehand (`make consumer`) and names its
folder in TORCH_SSAM_CPP_CONSUMER; without that it is built here, once a session whatever the number of workers.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ssam

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1] / "cpp" / "consumer"
STEPS = 4

# mode, and the options that go with it
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "perturb": ("perturb", {}),
    "momentum": ("perturb", {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01}),
    # Seeds of every sign and length: pickles write each in as few bytes as it needs.
    "nesterov": ("perturb", {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "seed": 2**40 + 17}),
    "maximize": ("perturb", {"maximize": True}),
    "rademacher": ("perturb", {"distribution": "rademacher", "momentum": 0.5}),
    "radius": ("perturb", {"radius": 2.0, "momentum": 0.9}),
    "no_noise": ("plain", {"noise_std": 0, "momentum": 0.9}),
    "closure": ("closure", {"momentum": 0.9}),
    "closure_passes": ("closure", {"samples": 2, "antithetic": True, "clean_weight": 0.25}),
    "samples": ("passes", {"samples": 3, "momentum": 0.9}),
    "antithetic": ("passes", {"samples": 2, "antithetic": True}),
    "clean_weight": ("passes", {"clean_weight": 0.4}),
    "split": ("split", {"samples": 3, "momentum": 0.9}),
    "split_everything": ("split", {"samples": 2, "antithetic": True, "clean_weight": 0.3}),
    "kept": ("kept", {"keep_perturbed": True, "momentum": 0.9, "seed": -(2**33) - 5}),
    "kept_radius": ("kept", {"keep_perturbed": True, "radius": 2.0}),
    "regenerate": ("perturb", {"memory": "regenerate", "momentum": 0.9}),
    "regenerate_passes": ("passes", {"memory": "regenerate", "antithetic": True}),
    "kept_regenerate": ("kept", {"keep_perturbed": True, "memory": "regenerate", "momentum": 0.9}),
    "seed_from_torch": ("perturb", {"seed": None}),
    "filter": ("perturb", {"scale": "filter", "momentum": 0.9}),
    "tensor_samples": ("passes", {"scale": "tensor", "samples": 2, "antithetic": True}),
    "absmax": ("perturb", {"scale": "absmax", "momentum": 0.9}),
    "kept_tensor_absmax": ("kept", {"keep_perturbed": True, "scale": "tensor_absmax"}),
    "clip": ("perturb", {"weight_clip": 1.2, "momentum": 0.9, "radius": 2.0}),
    "kept_clip": ("kept", {"keep_perturbed": True, "weight_clip": 1.2, "scale": "absmax", "momentum": 0.9}),
    "clip_columns": ("perturb", {"weight_clip": 1.2, "scale": "filter", "channel_dim": 1}),
    "element": ("perturb", {"scale": "element", "distribution": "rademacher"}),
    "fisher": ("perturb", {"scale": "fisher", "fisher_decay": 0.5, "fisher_factor": 2, "momentum": 0.9}),
    "fisher_closure": ("closure", {"scale": "fisher", "samples": 2, "clean_weight": 0.25}),
    "kept_filter": ("kept", {"keep_perturbed": True, "scale": "filter", "radius": 2.0}),
    "kept_element": ("kept", {"keep_perturbed": True, "scale": "element", "momentum": 0.9}),
    "kept_fisher": (
        "kept",
        {"keep_perturbed": True, "scale": "fisher", "fisher_factor": 3.0, "momentum": 0.9},
    ),
    "masters": ("perturb", {"master_dtype": "float32", "momentum": 0.9, "weight_decay": 0.01}),
    "masters_passes": ("passes", {"master_dtype": "float32", "samples": 2, "antithetic": True}),
    "masters_radius": ("closure", {"master_dtype": "float32", "radius": 2.0, "scale": "filter"}),
    "masters_no_noise": ("plain", {"master_dtype": "float32", "noise_std": 0, "momentum": 0.9}),
    "kept_masters": ("kept", {"master_dtype": "float32", "keep_perturbed": True, "momentum": 0.9}),
    "kept_rademacher": ("kept", {"keep_perturbed": True, "distribution": "rademacher"}),
}
# The same for SSAMAdamW, beside those above that name no option of SGD's update.
ADAMW_MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("perturb", {"lr": 1e-3}),
    "betas": ("perturb", {"betas": (0.5, 0.75), "eps": 1e-3, "weight_decay": 0.25}),
    "amsgrad": ("perturb", {"amsgrad": True, "weight_decay": 0}),
    "no_memory": ("perturb", {"betas": (0.0, 0.0), "eps": 0.5}),
    "kept_amsgrad": ("kept", {"keep_perturbed": True, "amsgrad": True, "seed": -3}),
    "kept_maximize": ("kept", {"keep_perturbed": True, "maximize": True, "distribution": "rademacher"}),
    "masters_amsgrad": ("perturb", {"master_dtype": "float32", "amsgrad": True, "lr": 1e-3}),
}
OF_SGD = {"momentum", "dampening", "nesterov", "weight_decay"}
RULES: dict[str, type[Any]] = {"SSAM": torch_ssam.SSAM, "SSAMAdamW": torch_ssam.SSAMAdamW}
MODELS = ("mlp", "cnn", "diagonal")
CASES = [("SSAM", model, name) for model in MODELS for name in MODES] + [("SSAM", "own_noise", "no_noise")]
CASES += [("SSAMAdamW", "cnn", name) for name in ADAMW_MODES]
CASES += [("SSAMAdamW", "mlp", name) for name in (*MODES, *ADAMW_MODES)]


RESUMED = ("kept", "kept_regenerate", "split_everything", "fisher", "kept_fisher", "masters", "kept_masters")


# Of AdaptiveNoiseStd: a name, or the function that parity.cpp has under it.
MEASURES: dict[str, Any] = {"function": lambda clean, noisy: (noisy - clean).abs().mean()}


def make_model(name: str) -> nn.Sequential:
    if name == "mlp":
        return nn.Sequential(nn.Linear(6, 33), nn.Tanh(), nn.Linear(33, 3))
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)
        )
    layer = torch_ssam.DiagonalLinear(65, 3, noise_std=0.1 if name == "own_noise" else 0.0, seed=31)
    return nn.Sequential(nn.Linear(6, 65), layer, nn.Linear(65, 3))


def make_optimizer(rule: str, model: nn.Module, options: dict[str, Any]) -> Any:
    params = list(model.parameters())
    if "master_dtype" in options:
        options = {**options, "master_dtype": getattr(torch, options["master_dtype"])}
    return RULES[rule]([{"params": params[:2]}, {"params": params[2:]}], **options)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def make_case(rule: str, model_name: str, mode_name: str) -> dict[str, Any]:
    torch.manual_seed(len(model_name) + 100 * len(mode_name))
    mode, options = MODES.get(mode_name) or ADAMW_MODES[mode_name]
    if rule != "SSAM":
        options = {
            name: value for name, value in options.items() if name not in OF_SGD or mode_name not in MODES
        }
    dtype = torch.bfloat16 if "master_dtype" in options else torch.float32
    model = make_model(model_name).to(dtype)
    x = torch.randn(10, 1, 6, 6) if model_name == "cnn" else torch.randn(10, 6)
    return {
        "rule": rule,
        "model": "diagonal" if model_name == "own_noise" else model_name,
        "own_noise": model_name == "own_noise",
        "layer_seed": 31,
        "mode": mode,
        "dtype": str(dtype).removeprefix("torch."),
        "options": {"lr": 0.05, "noise_std": 0.02, "seed": 2**62 + 17, **options},
        "steps": STEPS,
        "manual_seed": 5,
        "weights": weights_of(model),
        "optimizer": None,
        "adapts_by": "",
        "schedule": None,
        "x": x,
        "y": torch.randint(0, 3, (10,)),
    }


def run_in_python(case: dict[str, Any], name: str) -> dict[str, Any]:
    dtype = getattr(torch, case["dtype"])
    model = make_model(name).to(dtype)
    model.load_state_dict(case["weights"])
    torch.manual_seed(case["manual_seed"])
    opt = make_optimizer(case["rule"], model, case["options"])
    if case["optimizer"] is not None:
        opt.load_state_dict(case["optimizer"])
    x, y, mode = case["x"], case["y"], case["mode"]
    losses: list[float] = []

    def backward(x_k: Tensor, y_k: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(x_k.to(dtype)).float(), y_k)
        loss.backward()
        return loss

    def closure() -> Tensor:
        opt.zero_grad()
        return backward(x, y)

    schedule = None
    if case["adapts_by"]:
        measure = MEASURES.get(case["adapts_by"], case["adapts_by"])
        schedule = torch_ssam.schedules.AdaptiveNoiseStd(opt, 0.02, measure=measure, every=2, rate=0.5)
        if case["schedule"] is not None:
            schedule.load_state_dict(case["schedule"])

    def look() -> None:
        if schedule is not None:
            schedule.step(lambda: model(x.to(dtype)))

    opt.train()
    for _ in range(case["steps"]):
        if mode == "closure":
            losses.append(opt.step(closure).item())
            look()
            continue
        opt.zero_grad()
        if mode == "perturb":
            with opt.perturb():
                losses.append(backward(x, y).item())
        elif mode == "passes":
            for _ in opt.perturbations():
                losses.append(backward(x, y).item())
        elif mode == "split":
            for x_k, y_k in opt.perturbations(x, y):
                losses.append(backward(x_k, y_k).item())
        else:
            losses.append(backward(x, y).item())
        opt.step()
        look()
    state = opt.state_dict()
    opt.eval()
    return {
        "schedule": None if schedule is None else schedule.state_dict(),
        "optimizer": state,
        "weights": weights_of(model),
        "losses": torch.tensor(losses, dtype=torch.float64),
    }


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.detach().contiguous().view(-1).view(torch.uint8) for t in (a, b)))


@pytest.fixture(scope="session")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built consumer project."""
    built = os.environ.get("TORCH_SSAM_CPP_CONSUMER")
    if built:
        return Path(built)
    # The folder that this session's xdist workers share, or this process's own.
    shared = tmp_path_factory.getbasetemp()
    build = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "consumer"
    build.mkdir(exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build_consumer(build)
    return build


def build_consumer(build: Path) -> None:
    cmake = shutil.which("cmake")
    assert cmake is not None, (
        "the C++ consumer needs cmake; install it, or name a built one in TORCH_SSAM_CPP_CONSUMER"
    )
    prefixes = f"{torch_ssam.cmake_prefix_path};{torch.utils.cmake_prefix_path}"
    for command in (
        [
            cmake,
            "-S",
            str(PROJECT),
            "-B",
            str(build),
            f"-DCMAKE_PREFIX_PATH={prefixes}",
            "-DCMAKE_BUILD_TYPE=Release",
        ],
        [cmake, "--build", str(build), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def run_in_cpp(consumer: Path, folder: Path, cases: dict[str, Any]) -> dict[str, Any]:
    torch.save(cases, folder / "cases.pt")
    done = subprocess.run(
        [str(consumer / "parity"), str(folder / "cases.pt"), str(folder / "results.pt")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = torch.load(folder / "results.pt", weights_only=True)
    return results


@pytest.fixture(scope="session")
def runs(consumer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case, run by one C++ process."""
    cases = {"-".join(case): make_case(*case) for case in CASES}
    return {"cases": cases, "cpp": run_in_cpp(consumer, tmp_path_factory.mktemp("parity"), cases)}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["losses"].tolist() == theirs["losses"].tolist()
    assert set(ours["weights"]) == set(theirs["weights"])
    for name, value in ours["weights"].items():
        assert same_bits(value, theirs["weights"][name]), name
    for group, other in zip(
        ours["optimizer"]["param_groups"], theirs["optimizer"]["param_groups"], strict=True
    ):
        assert dict(other) == {name: group[name] for name in other}
    a, b = ours["optimizer"]["state"], theirs["optimizer"]["state"]
    assert {k: set(v) for k, v in a.items()} == {k: set(v) for k, v in b.items()}
    for place, entry in a.items():
        for name, value in entry.items():
            assert same_bits(value, b[place][name]), (place, name)


def test_the_consumer_of_the_installed_package_trains(consumer: Path) -> None:
    done = subprocess.run([str(consumer / "consumer")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "draw 100" in done.stdout


@pytest.mark.parametrize(("rule", "model", "mode"), CASES, ids=lambda v: str(v))
def test_cpp_and_python_end_in_the_same_bits(runs: dict[str, Any], rule: str, model: str, mode: str) -> None:
    name = f"{rule}-{model}-{mode}"
    case = runs["cases"][name]
    ours, theirs = run_in_python(case, model), runs["cpp"][name]
    assert all(math.isfinite(v) for v in ours["losses"].tolist())
    assert any(not same_bits(value, case["weights"][name]) for name, value in ours["weights"].items())
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("rule", "mode"),
    [
        *((rule, mode) for rule in RULES for mode in RESUMED),
        ("SSAM", "nesterov"),
        ("SSAMAdamW", "betas"),
        ("SSAMAdamW", "kept_amsgrad"),
        ("SSAMAdamW", "masters_amsgrad"),
    ],
)
def test_a_python_checkpoint_resumes_in_cpp_and_the_other_way_round(
    consumer: Path, tmp_path: Path, rule: str, mode: str
) -> None:
    start = make_case(rule, "mlp", mode)
    whole = run_in_python({**start, "steps": 2 * STEPS}, "mlp")
    python_first = run_in_python(start, "mlp")
    cpp_first = run_in_cpp(consumer, tmp_path, {"run": start})["run"]
    # Other options than the checkpoint's, which must win; keep_perturbed is not one that may change, and master_dtype
    # stays as constructed.
    fresh = {"lr": 9.0, "noise_std": 9.0, "seed": 1, "keep_perturbed": "kept" in mode}
    fresh |= {name: value for name, value in start["options"].items() if name == "master_dtype"}
    resumed = {
        name: {**start, "options": fresh, "weights": first["weights"], "optimizer": first["optimizer"]}
        for name, first in (("from_python", python_first), ("from_cpp", cpp_first))
    }
    in_cpp = run_in_cpp(consumer, tmp_path, resumed)
    for name, case in resumed.items():
        for result in (in_cpp[name], run_in_python(case, "mlp")):
            for key, value in whole["weights"].items():
                assert same_bits(value, result["weights"][key]), (name, key)


def test_weights_saved_by_one_load_in_the_other(runs: dict[str, Any]) -> None:
    """The C++ results are such a file: their weights load with load_state_dict, generator included."""
    for model in ("mlp", "cnn", "diagonal"):
        make_model(model).load_state_dict(runs["cpp"][f"SSAM-{model}-perturb"]["weights"])


@pytest.mark.parametrize("adapts_by", ["kl", "mse", "function"])
@pytest.mark.parametrize(("rule", "mode"), [("SSAM", "perturb"), ("SSAM", "kept"), ("SSAMAdamW", "closure")])
def test_noise_that_sets_itself_has_the_same_bits_and_goes_on_in_the_other_language(
    consumer: Path, tmp_path: Path, rule: str, mode: str, adapts_by: str
) -> None:
    start = {**make_case(rule, "mlp", mode), "adapts_by": adapts_by}
    ours, theirs = run_in_python(start, "mlp"), run_in_cpp(consumer, tmp_path, {"run": start})["run"]
    assert_same(ours, theirs)
    assert theirs["schedule"] == ours["schedule"]
    assert ours["schedule"]["last_change"] > 0
    noise_std = [[group["noise_std"] for group in one["optimizer"]["param_groups"]] for one in (ours, theirs)]
    assert noise_std[0] == noise_std[1]
    assert noise_std[0][0] != start["options"]["noise_std"]

    rest = {
        name: {**start, **{key: first[key] for key in ("weights", "optimizer", "schedule")}}
        for name, first in (("python", ours), ("cpp", theirs))
    }
    in_cpp = run_in_cpp(consumer, tmp_path, {"run": rest["python"]})["run"]
    in_python = run_in_python(rest["cpp"], "mlp")
    assert_same(in_python, in_cpp)
    assert in_python["schedule"] == in_cpp["schedule"]
    assert in_cpp["schedule"]["last_epoch"] == 2 * STEPS - 1


def test_a_checkpoint_of_torch_adamw_in_python_goes_on_in_cpp(consumer: Path, tmp_path: Path) -> None:
    """As it does in Python: test_adamw.py."""
    start = make_case("SSAMAdamW", "mlp", "defaults")
    model = make_model("mlp")
    model.load_state_dict(start["weights"])
    opt = torch.optim.AdamW(
        [{"params": list(model.parameters())[:2]}, {"params": list(model.parameters())[2:]}],
        lr=0.01,
        betas=(0.8, 0.9),
    )
    for _ in range(3):
        opt.zero_grad()
        nn.functional.cross_entropy(model(start["x"]), start["y"]).backward()
        opt.step()
    case = {**start, "weights": weights_of(model), "optimizer": opt.state_dict()}
    theirs = run_in_cpp(consumer, tmp_path, {"run": case})["run"]
    ours = run_in_python(case, "mlp")  # which goes on in the tensors that it loads
    assert ours["optimizer"]["state"][0]["step"] == 3 + STEPS
    assert ours["optimizer"]["param_groups"][0]["betas"] == (0.8, 0.9)
    assert_same(ours, theirs)
