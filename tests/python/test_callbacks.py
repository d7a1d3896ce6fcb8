"""Callbacks of Lightning and of Hugging Face Trainer: noise on and off, noise that sets itself, metrics in the log."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import front_helpers as front
import pytest
import torch
from test_frameworks import (
    Text,
    lightning_checkpoint,
    lightning_module,
    lightning_trainer,
    loader_of,
    needed,
    saved_by_hugging_face,
    transformer,
)
from torch import Tensor, nn

import torch_ssam
from torch_ssam.schedules import AdaptiveNoiseStd

RATE = {"target": 0.01, "measure": "mse", "every": 2}


# -- Lightning -----------------------------------------------------------------------------------------------


def of_lightning() -> Any:
    needed("lightning.pytorch", "Lightning")
    return importlib.import_module("torch_ssam.lightning")


def adaptive() -> Any:
    return of_lightning().AdaptiveNoise(lambda module, batch: module.net(batch[0]), **RATE)


def stds_of_our_own(epochs: int) -> list[float]:
    net = front.Net()
    opt = front.ssam(net)
    schedule = AdaptiveNoiseStd(opt, **RATE)  # type: ignore[arg-type]
    for _ in range(epochs):
        for x, y in loader_of():
            with opt.perturb():
                front.loss_of(net, x, y).backward()
            opt.step()
            opt.zero_grad()
            schedule.step(lambda x=x: net(x))  # type: ignore[misc]
    return schedule.get_last_noise_std()


def test_lightning_s_noise_sets_itself_as_in_our_own_loop(tmp_path: Path) -> None:
    callback, module = adaptive(), lightning_module(front.ssam)
    lightning_trainer(tmp_path, callbacks=[callback]).fit(module, loader_of())
    (schedule,) = callback.schedules
    assert schedule.last_epoch == 7
    assert schedule.get_last_noise_std() == stds_of_our_own(2) != [0.3]


def test_lightning_s_noise_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def run(epochs: int, path: Path | None, folder: str) -> Any:
        callback = adaptive()
        save = lightning_checkpoint(tmp_path / folder, filename="end")
        trainer = lightning_trainer(tmp_path, callbacks=[callback, save], max_epochs=epochs)
        trainer.fit(lightning_module(front.ssam), loader_of(), ckpt_path=path)
        return callback.schedules[0]

    run(1, None, "part")
    resumed, whole = run(2, tmp_path / "part" / "end.ckpt", "rest"), run(2, None, "whole")
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.get_last_noise_std() == whole.get_last_noise_std()


def test_lightning_s_callbacks_count_steps_and_not_batches(tmp_path: Path) -> None:
    callbacks = of_lightning()
    adapt, keep = adaptive(), callbacks.KeepPerturbed()
    module = lightning_module(front.ssam, keep_perturbed=True)
    trainer = lightning_trainer(
        tmp_path, callbacks=[adapt, callbacks.LogMetrics(every=2), keep], accumulate_grad_batches=2
    )
    trainer.fit(module, loader_of())
    assert trainer.global_step == 4
    assert adapt.schedules[0].last_epoch == 3


def test_lightning_logs_the_metrics(tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []
    callbacks = of_lightning()
    module = lightning_module(front.ssam)
    module.log_dict = lambda found, **_: logged.append(found)
    log = callbacks.LogMetrics(every=3, loss=lambda module, batch: front.loss_of(module.net, *batch))
    lightning_trainer(tmp_path, callbacks=[log]).fit(module, loader_of())
    assert len(logged) == 2  # of 8 steps
    assert set(logged[0]) == {
        f"noise/{name}"
        for name in (
            "noise_std",
            "noise_to_weight",
            "noise_rounded_away",
            "clean_loss",
            "noisy_loss",
            "loss_rise",
        )
    }
    assert logged[0]["noise/noise_std"] == 0.3
    assert logged[0] != logged[1]


def test_lightning_s_log_takes_the_metrics(tmp_path: Path) -> None:
    trainer = lightning_trainer(tmp_path, callbacks=[of_lightning().LogMetrics(every=1)])
    trainer.fit(lightning_module(front.ssam), loader_of())
    assert float(trainer.callback_metrics["noise/noise_std"]) == pytest.approx(0.3)


def test_lightning_s_callbacks_train_in_the_bits_of_none(tmp_path: Path) -> None:
    """AdaptiveNoise on target, and LogMetrics with a loss."""
    ends = []
    callbacks = of_lightning()
    for with_them in (False, True):
        module = lightning_module(front.ssam)
        them = [
            callbacks.AdaptiveNoise(lambda m, b: m.net(b[0]), measure=lambda clean, noisy: 0.05, every=1),
            callbacks.LogMetrics(every=1, loss=lambda m, b: front.loss_of(m.net, *b)),
        ]
        lightning_trainer(tmp_path, callbacks=them if with_them else []).fit(module, loader_of())
        ends.append(front.snapshot(module.net))
    assert front.same_bits(*ends)


def test_lightning_without_our_optimizer_is_refused(tmp_path: Path) -> None:
    callbacks = of_lightning()
    for callback in (adaptive(), callbacks.LogMetrics()):
        module = lightning_module(lambda net: torch.optim.SGD(net.parameters(), lr=0.1))
        with pytest.raises(TypeError, match=f"{type(callback).__name__} found no optimizer of torch_ssam"):
            lightning_trainer(tmp_path, callbacks=[callback]).fit(module, loader_of())
    with pytest.raises(TypeError, match="outputs is a int"):
        callbacks.AdaptiveNoise(3)
    with pytest.raises(TypeError, match="loss is a int"):
        callbacks.LogMetrics(loss=3)
    with pytest.raises(ValueError, match="every is 0"):
        callbacks.LogMetrics(every=0)


# -- Hugging Face Trainer ------------------------------------------------------------------------------------


def of_trainer() -> Any:
    needed("transformers", "Hugging Face Trainer")
    needed("accelerate", "Hugging Face Trainer")
    return importlib.import_module("torch_ssam.transformers")


OPTIONS = {"lr": 0.01, "noise_std": 0.01, "keep_perturbed": True, "seed": 5}


def trainer_of(
    root: Path, model: Any, callbacks: list[Any], make: Any = torch_ssam.SSAMAdamW, **options: Any
) -> Any:
    transformers = needed("transformers", "Hugging Face Trainer")
    arguments = transformers.TrainingArguments(
        output_dir=str(root),
        **{
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "save_steps": 3,
            "logging_steps": 100,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 3,
            **options,
        },
    )
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Text(),
        eval_dataset=Text(8),
        optimizer_cls_and_kwargs=(make, OPTIONS),
        callbacks=callbacks,
    )


@pytest.mark.parametrize("make", [torch_ssam.SSAM, torch_ssam.SSAMAdamW])
def test_trainer_makes_the_optimizer_trains_with_noise_and_ends_clean(make: Any, tmp_path: Path) -> None:
    callbacks = of_trainer()
    model = transformer()
    trainer = trainer_of(tmp_path / "whole", model, [callbacks.KeepPerturbed()], make)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert optimizer.draw == 6
    assert not optimizer._noise.active
    clean = front.snapshot(model)
    saved, own = saved_by_hugging_face(tmp_path / "whole", 6), dict(model.named_parameters())
    assert front.same_bits(saved.values(), [own[name] for name in saved])
    assert not model._state_dict_hooks  # detached

    without = transformer()
    other = trainer_of(tmp_path / "without", without, [], make)
    other.create_optimizer().attach(without)
    other.train()
    other.optimizer.optimizer.eval()
    assert front.same_bits(front.snapshot(without), clean)

    resumed = transformer()
    trainer_of(tmp_path / "rest", resumed, [callbacks.KeepPerturbed()], make).train(
        str(tmp_path / "whole" / "checkpoint-3")
    )
    assert front.same_bits(front.snapshot(resumed), clean)


def test_other_callbacks_of_trainer_read_clean_weights(tmp_path: Path) -> None:
    transformers = needed("transformers", "Hugging Face Trainer")
    callbacks = of_trainer()
    read: dict[str, list[list[Tensor]]] = {"on_step_end": [], "on_save": [], "on_evaluate": [], "on_log": []}
    active: list[bool] = []

    def reading(name: str) -> Any:
        def hook(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
            read[name].append(front.snapshot(given["model"]))
            active.append(given["optimizer"].optimizer._noise.active)

        return hook

    reader = type("Reader", (transformers.TrainerCallback,), {name: reading(name) for name in read})()
    trainer = trainer_of(
        tmp_path, transformer(), [callbacks.KeepPerturbed(), reader], eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    assert all(read.values())
    assert not any(active)


def test_trainer_s_noise_sets_itself_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    callbacks = of_trainer()
    kept = callbacks.KeepPerturbed

    def run(folder: str, start: str | None = None) -> Any:
        adapt = callbacks.AdaptiveNoise(target=0.01, every=2)
        trainer_of(tmp_path / folder, transformer(), [kept(), adapt]).train(start)
        return adapt.schedule

    whole = run("whole")
    resumed = run("rest", str(tmp_path / "whole" / "checkpoint-3"))
    assert whole.last_epoch == 5
    assert whole.get_last_noise_std()[0] > 0.0105
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.get_last_noise_std() == whole.get_last_noise_std()


def test_trainer_s_callbacks_train_in_the_bits_of_none_and_log(tmp_path: Path) -> None:
    callbacks = of_trainer()
    ends = []
    for with_them in (False, True):
        model = transformer()
        trainer = trainer_of(tmp_path / str(with_them), model, [callbacks.KeepPerturbed()])
        if with_them:
            seen: list[Any] = []
            trainer.add_callback(
                callbacks.AdaptiveNoise(
                    outputs=lambda found, seen=seen: seen.append(found) or found.logits,
                    measure=lambda clean, noisy: 0.05,
                    every=1,
                )
            )
            trainer.add_callback(callbacks.LogMetrics(trainer, every=3, loss=True))
        trainer.train()
        ends.append(front.snapshot(model))
    assert front.same_bits(*ends)
    assert len(seen) == 12
    logged = [row for row in trainer.state.log_history if "noise_to_weight" in row]
    assert [row["step"] for row in logged] == [3, 6]
    assert all(row["noise_std"] == 0.01 and row["loss_rise"] != 0.0 for row in logged)


def test_trainer_without_our_optimizer_is_refused(tmp_path: Path) -> None:
    callbacks = of_trainer()
    trainer = trainer_of(tmp_path, transformer(), [callbacks.KeepPerturbed(), callbacks.AdaptiveNoise()])
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"lr": 0.1})
    with pytest.raises(TypeError, match="AdaptiveNoise found no optimizer of torch_ssam"):
        trainer.train()
    with pytest.raises(TypeError, match="outputs is a int"):
        callbacks.AdaptiveNoise(3)
    with pytest.raises(ValueError, match="every is 0"):
        callbacks.LogMetrics(trainer, every=0)
    with pytest.raises(TypeError, match="loss is 1"):
        callbacks.LogMetrics(trainer, loss=1)


def test_dicts_of_outputs_are_read_too() -> None:
    member = of_trainer()._member
    assert member({"logits": 3}, "logits") == 3
    assert member(nn.Linear(1, 2), "out_features") == 2


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_fine_tunes_with_ssam_adamw(bf16: bool, tmp_path: Path) -> None:
    """Accumulation, clipping to norm 1, bf16, and a warm-up of the learning rate beside a ramp of the noise: one draw and
    one change of noise_std a step, and the log says how often gradients were clipped."""
    transformers = needed("transformers", "Hugging Face Trainer")
    callbacks = of_trainer()
    noise_std: list[float] = []
    lr: list[float] = []

    class Ramp(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.schedule = torch_ssam.schedules.LambdaNoiseStd(
                given["optimizer"].optimizer, lambda step: min(1.0, step / 4)
            )

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            lr.append(given["optimizer"].param_groups[0]["lr"])
            self.schedule.step()
            noise_std.append(given["optimizer"].param_groups[0]["noise_std"])

    model = transformer()
    before = front.snapshot(model)
    trainer = trainer_of(
        tmp_path,
        model,
        [callbacks.KeepPerturbed(), Ramp()],
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        bf16=bf16,
        warmup_steps=3,
        logging_steps=1,
        save_strategy="no",
    )
    metrics = callbacks.LogMetrics(trainer, every=3)
    trainer.add_callback(metrics)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert optimizer.draw == 6
    assert noise_std == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
    assert lr[0] < lr[1] < lr[2] > lr[4]
    logged = [row for row in trainer.state.log_history if "grad_clipped" in row]
    own = [row["grad_norm"] for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in logged] == [3, 6]
    for k, row in enumerate(logged):
        norms = own[3 * k : 3 * k + 3]
        assert row["grad_norm"] == pytest.approx(sum(norms) / 3, rel=1e-5)
        assert row["grad_clipped"] == pytest.approx(sum(norm > 1.0 for norm in norms) / 3)
    assert logged[0]["grad_clipped"] > 0
    assert not optimizer._noise.active
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert "clip_grad_norm_" not in vars(trainer.accelerator)  # as it was
    assert metrics._undo is None
