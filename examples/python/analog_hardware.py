"""How long a network keeps its accuracy in simulated analog memory, trained by SGD and by S-SAM.

    python examples/python/analog_hardware.py --quick             # scikit-learn's digits, under a minute
    python examples/python/analog_hardware.py --out analog.json   # Fashion-MNIST, 3 trainings each
    python examples/python/analog_hardware.py --simulator aihwkit-lightning

A small CNN with BatchNorm is trained four ways and its layers are converted by a simulator that we did not write.
aihwkit: phase-change memory, programmed once (a chip), read after a second, a day and a year of drift that one factor
a layer compensates, inputs and outputs through converters. aihwkit-lightning: Gaussian noise in units of each filter's
largest weight. Installing them: docs/deploy.md. Tests: tests/python/test_analog_hardware.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

import torch_ssam
from torch_ssam import presets, schedules
from torch_ssam.compare import Data, DataError, Setting, estimate

TIMES = {"a second": 1.0, "a day": 86_400.0, "a year": 365 * 86_400.0}
NOISY = "a second, noise x 3"
STDS = (0.1, 0.2, 0.3)
CLIPPED = {"noise_std": 0.0, "weight_clip": 2.0}
#: The optimizer's options by method; None for torch.optim.SGD.
SETS_ITSELF = "S-SAM, noise that sets itself"
METHODS: dict[str, dict[str, Any] | None] = {
    "SGD": None,
    "SGD, clipped": CLIPPED,
    "S-SAM, deploy()": presets.deploy(),
    SETS_ITSELF: {**presets.deploy(), "noise_std": 0.02},
}


# -- training ----------------------------------------------------------------------------------------------------


def network(data: Data) -> nn.Module:
    """Three 3 x 3 convolutions with BatchNorm, and two linear layers."""

    def block(given: int, made: int) -> list[nn.Module]:
        return [nn.Conv2d(given, made, 3, 2, 1), nn.BatchNorm2d(made), nn.ReLU()]

    side = -(-data.train[0].shape[-1] // 8)
    return nn.Sequential(
        *(*block(1, 16), *block(16, 32), *block(32, 64), nn.Flatten()),
        *(nn.Linear(64 * side * side, 64), nn.ReLU(), nn.Linear(64, data.outputs)),
    )


def noise_schedule(method: str, opt: Any, model: nn.Module, steps: int) -> Callable[[torch.Tensor], object]:
    """What to call with the batch after each step: noise that sets itself, or rises over the first half of the steps."""
    if method == SETS_ITSELF:
        adaptive = schedules.AdaptiveNoiseStd(opt, target=0.05)
        return lambda batch: adaptive.step(lambda: model(batch))
    rising = schedules.LambdaNoiseStd(opt, lambda step: min(1.0, 2 * step / steps))
    return lambda batch: rising.step()


def train(method: str, data: Data, seed: int, options: argparse.Namespace) -> nn.Module:
    """The network in eval mode, with clean weights and BatchNorm's statistics at them."""
    torch.manual_seed(seed)
    model = network(data)
    x, y = data.train
    steps = options.epochs * -(-len(x) // options.batch)
    common = {"lr": options.lr, "momentum": 0.9, "weight_decay": 1e-3}
    given = METHODS[method]
    opt: Any
    set_noise = None
    if given is None:
        opt = torch.optim.SGD(model.parameters(), **common)
    else:
        weights = [p for p in model.parameters() if p.dim() > 1]
        others = [
            p for p in model.parameters() if p.dim() < 2
        ]  # biases and norms stay digital: no noise on them
        groups = [{"params": weights}, {"params": others, "noise_std": 0.0}]
        opt = torch_ssam.SSAM(groups, **common, **given, keep_perturbed=True, seed=seed)
        set_noise = noise_schedule(method, opt, model, steps)
        opt.train()
    falling = CosineAnnealingLR(opt, steps)
    order = torch.Generator().manual_seed(seed)
    for _ in range(options.epochs):
        for rows in torch.randperm(len(x), generator=order).split(options.batch):
            opt.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            opt.step()
            falling.step()
            if set_noise is not None:
                set_noise(x[rows])
    if given is not None:
        opt.eval()  # the clean weights
    torch_ssam.update_bn(x.split(500), model)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """In percent, on the test split."""
    x, y = data.test
    hits = torch.cat([model(part).argmax(1) for part in x.split(500)]).eq(y)
    return 100.0 * int(hits.sum()) / len(hits)


# -- the simulators ----------------------------------------------------------------------------------------------


class NotInstalled(Exception):
    """A simulator that cannot be imported, and how to install it."""


def imported(module: str) -> Any:
    """The module of a simulator.

    Raises:
        NotInstalled: with what to do.
    """
    package = module.partition(".")[0]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # aihwkit-lightning prints that it has no Triton
            return importlib.import_module(module)
    except ImportError as error:
        raise NotInstalled(
            f"{package.replace('_', '-')} cannot be imported ({error}). Both simulators: pip install "
            "'torch_ssam[analog]'. aihwkit 1.2.0 has wheels for Python 3.12 and later; for earlier ones it is "
            "compiled, in five minutes, which needs libopenblas-dev, pip install 'setuptools>=77' wheel scikit-build "
            "pybind11 cmake ninja mypy, and pip install --no-build-isolation aihwkit==1.2.0. aihwkit-lightning is "
            "Python alone: pip install aihwkit-lightning==2.1.0, then --simulator aihwkit-lightning."
        ) from None


def phase_change_memory(model: nn.Module, data: Data, options: argparse.Namespace) -> dict[str, list[float]]:
    """Accuracies by time since programming, one a chip: aihwkit's model of phase-change memory.

    Every tile (a layer) is scaled so that its largest weight is the largest that a tile computes with, or not
    (`--unscaled`, aihwkit's default: small weights then drown in the noise of the outputs). All else is as aihwkit
    has it: 7 bits of input and 9 of output, output noise, input ranges by each vector's largest value, one factor a tile
    that compensates the drift.
    """
    convert = imported("aihwkit.nn.conversion").convert_to_analog
    config = imported("aihwkit.simulator.configs").TorchInferenceRPUConfig()
    config.mapping.weight_scaling_omega = 0.0 if options.unscaled else 1.0
    noise_model = imported("aihwkit.inference").PCMLikeNoiseModel
    analog = convert(model, config).eval()
    found: dict[str, list[float]] = {name: [] for name in (*TIMES, NOISY)}
    for chip in range(options.chips):
        torch.manual_seed(chip)  # one chip for all methods
        analog.program_analog_weights(noise_model())
        for name, seconds in TIMES.items():
            analog.drift_analog_weights(seconds)
            found[name].append(accuracy(analog, data))
        analog.program_analog_weights(noise_model(prog_noise_scale=3.0, read_noise_scale=3.0))
        analog.drift_analog_weights(1.0)
        found[NOISY].append(accuracy(analog, data))
    return found


def weight_noise(model: nn.Module, data: Data, options: argparse.Namespace) -> dict[str, list[float]]:
    """Accuracies by noise in units of each filter's largest weight: aihwkit-lightning, with 8-bit inputs.

    The noise is drawn anew for each batch of the test images: a chip is one pass over them.
    """
    toolkit, configs = imported("aihwkit_lightning.nn"), imported("aihwkit_lightning.simulator.configs")
    convert = imported("aihwkit_lightning.nn.conversion").convert_to_analog
    found: dict[str, list[float]] = {}
    for std in STDS:
        config = configs.TorchInferenceRPUConfig()
        config.modifier.noise_type = configs.WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL
        config.modifier.std_dev = std
        config.forward.inp_res = 2**8 - 2
        config.pre_post.input_range.enable = config.pre_post.input_range.dynamic = True
        analog = convert(model, config).eval()
        for layer in analog.modules():
            if isinstance(layer, toolkit.AnalogLinear | toolkit.AnalogConv2d):
                layer.train()  # where the toolkit has its noise; BatchNorm stays in eval mode
        found[f"noise {std:g}"] = []
        for chip in range(options.chips):
            torch.manual_seed(chip)
            found[f"noise {std:g}"].append(accuracy(analog, data))
    return found


SIMULATORS = {
    "aihwkit": ("aihwkit.nn", phase_change_memory, (*TIMES, NOISY)),
    "aihwkit-lightning": ("aihwkit_lightning.nn", weight_noise, tuple(f"noise {std:g}" for std in STDS)),
}


# -- the table ---------------------------------------------------------------------------------------------------

Results = dict[str, list[dict[str, list[float]]]]


def table(results: Results, columns: Sequence[str]) -> str:
    """A row a method: means, with 95% intervals over trainings, or over chips where there is one training."""
    lines = [f"{'accuracy %':31s}" + "".join(f"{name:>21s}" for name in ("clean", *columns))]
    for method, runs in results.items():
        cells = []
        for name in ("clean", *columns):
            one = len(runs) == 1
            values = runs[0][name] if one else [estimate(run[name]).mean for run in runs]
            cells.append(f"{estimate(values).text(1):>21s}")
        lines.append(f"{method:31s}" + "".join(cells))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "analog_hardware.py", allow_abbrev=False, description=__doc__.splitlines()[0]
    )
    made.add_argument("--simulator", choices=SIMULATORS, default="aihwkit", help="default %(default)s")
    made.add_argument("--quick", action="store_true", help="digits, few epochs, one training, 3 chips")
    made.add_argument("--train", type=int, default=5000, help="training images (default %(default)s)")
    made.add_argument("--test", type=int, default=4000, help="test images (default %(default)s)")
    made.add_argument("--epochs", type=int, default=20, help="default %(default)s")
    made.add_argument("--batch", type=int, default=100, help="images of a gradient (default %(default)s)")
    made.add_argument("--lr", type=float, default=0.1, help="default %(default)s")
    made.add_argument("--seeds", type=int, default=3, help="trainings of each method (default %(default)s)")
    made.add_argument("--chips", type=int, default=5, help="draws of the hardware (default %(default)s)")
    made.add_argument("--unscaled", action="store_true", help="aihwkit: weights on the tiles as they are")
    made.add_argument("--threads", type=int, default=1, help="default %(default)s")
    made.add_argument("--out", type=Path, help="also write every accuracy to this JSON file")
    return made


def run(options: argparse.Namespace) -> Results:
    """Trains, simulates, prints the table.

    Raises:
        NotInstalled, DataError, ValueError: in words.
    """
    for name in ("train", "test", "epochs", "batch", "seeds", "chips", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}; expected 1 or more.")
    module, simulate, columns = SIMULATORS[options.simulator]
    imported(module)  # now, not after the training
    if options.quick:
        options.train, options.test, options.epochs, options.batch = 1000, 500, 6, 50
        options.seeds, options.chips = 1, 3
    torch.set_num_threads(options.threads)
    wanted = Setting(
        "analog", data="digits" if options.quick else "fashion-mnist", train=options.train, test=options.test
    )
    data = wanted.data_factory(wanted, 0)
    print(
        f"{data.name}: {len(data.train[1])} images, {options.epochs} epochs; {data.note}".removesuffix("; ")
    )
    results: Results = {}
    for method in METHODS:
        results[method] = []
        for seed in range(options.seeds):
            model = train(method, data, seed, options)
            found = {"clean": [accuracy(model, data)], **simulate(model, data, options)}
            results[method].append(found)
            print(f"{method}, seed {seed}: clean {found['clean'][0]:.1f}", file=sys.stderr, flush=True)
    over = "trainings" if options.seeds > 1 else "chips"
    print(
        f"{options.simulator}: trainings {options.seeds}, chips of each {options.chips}; 95% intervals over {over}"
    )
    print(table(results, columns))
    if options.out is not None:
        options.out.write_text(
            json.dumps({"simulator": options.simulator, "results": results}, indent=1) + "\n"
        )
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        run(parser().parse_args(arguments))
    except (NotInstalled, DataError, ValueError, OSError) as error:
        print(f"analog_hardware: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
