"""Lightning, Hugging Face Trainer, Accelerate and skorch train with SSAM and wrap by their own loops: the numbers are
those of our own loop where the framework's order of batches is known, what they save is clean, and what they resume
ends in the same bits. test_peers.py, rows 9, 10 and 11.

The frameworks are the `frameworks` extra of pyproject.toml; a test whose framework is missing says so.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import front_helpers as front
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import torch_ssam

MAKERS: dict[str, Callable[..., Any]] = {
    "ssam": front.ssam,
    "adamw": front.adamw,
    "wrap": front.wrapped_adamw,
}


def needed(name: str, what: str) -> Any:
    return pytest.importorskip(name, reason=f"NOT TESTED here: {what} needs {name} (the frameworks extra)")


def loader_of(count: int = 4) -> DataLoader[Any]:
    todo = front.batches(count)
    data = TensorDataset(torch.cat([x for x, _ in todo]), torch.cat([y for _, y in todo]))
    return DataLoader(data, batch_size=12)


def our_own(make: Callable[..., Any], epochs: int) -> list[Tensor]:
    """The same training by the loop of the README."""
    model = front.Net()
    opt = make(model)
    for _ in range(epochs):
        front.by_perturb(opt, model, front.batches(4))
    return front.snapshot(model)


# -- Lightning -----------------------------------------------------------------------------------------------


def lightning_module(make: Callable[..., Any], **options: Any) -> Any:
    lightning = needed("lightning.pytorch", "Lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = front.Net()
            self.validated: list[list[Tensor]] = []

        def training_step(self, batch: Any, index: int) -> Tensor:
            return front.loss_of(self.net, *batch)

        def validation_step(self, batch: Any, index: int) -> None:
            self.validated.append(front.snapshot(self.net))

        def configure_optimizers(self) -> Any:
            return make(self.net, **options)

    return Module()


def lightning_trainer(root: Path, **options: Any) -> Any:
    lightning = needed("lightning.pytorch", "Lightning")
    return lightning.Trainer(
        default_root_dir=root,
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **options,
        },
    )


def lightning_checkpoint(root: Path, **options: Any) -> Any:
    return needed("lightning.pytorch", "Lightning").callbacks.ModelCheckpoint(dirpath=root, **options)


def keep_perturbed() -> Any:
    needed("lightning.pytorch", "Lightning")
    return importlib.import_module("torch_ssam.lightning").KeepPerturbed()


def net_of(checkpoint: Path) -> list[Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return [value for key, value in state.items() if key.startswith("net.")]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_lightning_s_automatic_optimization_trains_as_our_own_loop_does(kind: str, tmp_path: Path) -> None:
    module = lightning_module(MAKERS[kind])
    trainer = lightning_trainer(tmp_path, callbacks=[lightning_checkpoint(tmp_path, filename="end")])
    trainer.fit(module, loader_of(), loader_of(1))
    expected = our_own(MAKERS[kind], epochs=2)
    assert front.same_bits(front.snapshot(module.net), expected)
    assert front.same_bits(net_of(tmp_path / "end.ckpt"), expected)
    assert front.same_bits(module.validated[-1], expected)


@pytest.mark.parametrize("kept", [False, True])
def test_lightning_resumes_from_its_checkpoint_in_the_same_bits(kept: bool, tmp_path: Path) -> None:
    def run(epochs: int, path: Path | None, folder: str) -> list[Tensor]:
        module = lightning_module(front.ssam, keep_perturbed=kept)
        callbacks = [lightning_checkpoint(tmp_path / folder, filename="end")]
        if kept:
            callbacks.append(keep_perturbed())
        trainer = lightning_trainer(tmp_path, callbacks=callbacks, max_epochs=epochs)
        trainer.fit(module, loader_of(), ckpt_path=path)
        return front.snapshot(module.net)

    whole = run(2, None, "whole")
    run(1, None, "part")
    assert front.same_bits(run(2, tmp_path / "part" / "end.ckpt", "rest"), whole)
    assert front.same_bits(whole, our_own(front.ssam, epochs=2))


class Counted:
    """A loader that knows where it is, as Lightning's protocol for stateful loaders wants it."""

    def __init__(self) -> None:
        self.batches = front.batches(4)
        self.done = 0

    def __iter__(self) -> Iterator[Any]:
        first, self.done = self.done % len(self.batches), self.done % len(self.batches)
        for batch in self.batches[first:]:
            self.done += 1
            yield batch

    def __len__(self) -> int:
        return len(self.batches)

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("kept", [False, True])
def test_lightning_resumes_in_the_middle_of_an_epoch(
    kept: bool, kind: str, stateful: bool, tmp_path: Path
) -> None:
    """With a loader that has a state the bits are those of an undisturbed run; with torch's own, whose place Lightning
    does not keep, those of our own loop over the batches that it hands out."""

    def run(path: Path | None, folder: str) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        module = lightning_module(MAKERS[kind], keep_perturbed=kept)
        seen: list[tuple[Tensor, Tensor]] = []
        module.on_train_batch_start = lambda batch, batch_idx: seen.append(tuple(batch))
        callbacks = [
            lightning_checkpoint(tmp_path / folder, filename="{step}", every_n_train_steps=3, save_top_k=-1),
            keep_perturbed(),
        ]
        trainer = lightning_trainer(tmp_path, callbacks=callbacks)
        trainer.fit(module, Counted() if stateful else loader_of(), ckpt_path=path)
        return front.snapshot(module.net), seen

    whole, all_seen = run(None, "whole")
    assert len(all_seen) == 8
    rest, rest_seen = run(tmp_path / "whole" / "step=3.ckpt", "rest")
    assert len(rest_seen) == 5
    model = front.Net()
    opt = MAKERS[kind](model)
    front.by_perturb(opt, model, all_seen[:3])
    assert front.same_bits(net_of(tmp_path / "whole" / "step=3.ckpt"), front.snapshot(model))
    front.by_perturb(opt, model, rest_seen)
    assert front.same_bits(rest, front.snapshot(model))
    assert front.same_bits(rest, whole) or not stateful


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_lightning_accumulates_clips_and_saves_clean_with_keep_perturbed(kind: str, tmp_path: Path) -> None:
    module = lightning_module(MAKERS[kind], keep_perturbed=True)
    callbacks = [
        lightning_checkpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1),
        keep_perturbed(),
    ]
    trainer = lightning_trainer(
        tmp_path, callbacks=callbacks, accumulate_grad_batches=2, gradient_clip_val=0.5
    )
    trainer.fit(module, loader_of(), loader_of(1))

    model = front.Net()
    opt = MAKERS[kind](model)
    todo = front.batches(4) * 2
    for k in range(0, 8, 2):
        opt.zero_grad()
        with opt.perturb():
            for x, y in todo[k : k + 2]:
                (front.loss_of(model, x, y) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
        for saved, own in zip(net_of(tmp_path / f"step={k // 2 + 1}.ckpt"), model.parameters(), strict=True):
            torch.testing.assert_close(saved, own.detach(), rtol=1e-5, atol=1e-6)
    for saved, own in zip(module.net.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(saved, own, rtol=1e-5, atol=1e-6)
    assert front.same_bits(module.validated[-1], front.snapshot(module.net))


def test_lightning_accumulating_at_clean_weights_is_noticed(tmp_path: Path) -> None:
    """Without keep_perturbed Lightning takes the first gradients of each step outside of step(closure)."""
    module = lightning_module(front.ssam)
    trainer = lightning_trainer(tmp_path, accumulate_grad_batches=2, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="gradients that were there before"):
        trainer.fit(module, loader_of())


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_lightning_says_how_often_gradients_are_clipped(kind: str, tmp_path: Path) -> None:
    lightning = needed("lightning.pytorch", "Lightning")
    module = lightning_module(MAKERS[kind], keep_perturbed=True)
    logged: list[dict[str, float]] = []
    module.log_dict = lambda found, **_: logged.append(found)
    norms: list[float] = []

    class Norms(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            norms.append(float(torch.stack([p.grad.norm() for p in module.net.parameters()]).norm()))

    metrics = importlib.import_module("torch_ssam.lightning").LogMetrics(every=4)
    trainer = lightning_trainer(
        tmp_path,
        callbacks=[keep_perturbed(), metrics, Norms()],
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        enable_checkpointing=False,
    )
    trainer.fit(module, loader_of())
    assert len(norms) == 4
    (found,) = logged
    assert found["noise/grad_norm"] == pytest.approx(sum(norms) / 4)
    assert found["noise/grad_clipped"] == sum(norm > 1.0 for norm in norms) / 4 > 0


@pytest.mark.parametrize("make", [front.ssam, front.adamw], ids=["ssam", "adamw"])
@pytest.mark.parametrize("kept", [False, True])
def test_lightning_trains_in_bf16_mixed_precision(kept: bool, make: Any, tmp_path: Path) -> None:
    module = lightning_module(make, keep_perturbed=kept, lr=0.01)
    callbacks = [keep_perturbed()]
    trainer = lightning_trainer(
        tmp_path, precision="bf16-mixed", callbacks=callbacks, enable_checkpointing=False
    )
    before = front.loss_of(module.net, *front.data()).item()
    trainer.fit(module, loader_of())
    assert module.net.first.dtype == torch.float32
    assert front.loss_of(module.net, *front.data()).item() < before


def test_a_failing_lightning_run_leaves_clean_weights(tmp_path: Path) -> None:
    module = lightning_module(front.ssam, keep_perturbed=True)
    clean = front.snapshot(module.net)

    def fail(*_: Any) -> Tensor:
        assert not front.same_bits(front.snapshot(module.net), clean)
        raise front.Alarm

    module.training_step = fail
    trainer = lightning_trainer(tmp_path, callbacks=[keep_perturbed()], enable_checkpointing=False)
    with pytest.raises(front.Alarm):
        trainer.fit(module, loader_of())
    assert front.same_bits(front.snapshot(module.net), clean)


def reading_callback(moments: list[str]) -> tuple[Any, dict[str, list[list[Tensor]]]]:
    """A callback that notes the weights that it finds, and what it has found."""
    lightning = needed("lightning.pytorch", "Lightning")
    found: dict[str, list[list[Tensor]]] = {moment: [] for moment in moments}

    class Reads(lightning.Callback):  # type: ignore[misc, name-defined]
        pass

    for moment in moments:

        def read(self: Any, trainer: Any, module: Any, *_: Any, moment: str = moment, **__: Any) -> None:
            found[moment].append(front.snapshot(module.net))

        setattr(Reads, moment, read)
    return Reads(), found


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_callbacks_of_lightning_read_clean_weights_in_any_order(
    kind: str, accumulate: int, first: bool, tmp_path: Path
) -> None:
    moments = ["on_train_batch_start", "on_train_batch_end", "on_train_epoch_start", "on_train_epoch_end"]
    moments += ["on_validation_start", "on_validation_end", "on_train_end"]
    reads, found = reading_callback(moments)
    module = lightning_module(MAKERS[kind], keep_perturbed=True)
    noisy: list[list[Tensor]] = []
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Tensor:
        noisy.append(front.snapshot(module.net))
        return step(batch, batch_idx)

    module.training_step = training_step
    trainer = lightning_trainer(
        tmp_path,
        callbacks=[keep_perturbed(), reads] if first else [reads, keep_perturbed()],
        accumulate_grad_batches=accumulate,
        enable_checkpointing=False,
    )
    trainer.fit(module, loader_of(), loader_of(1))

    model = front.Net()
    opt = MAKERS[kind](model)
    for k, (x, y) in enumerate(front.batches(4) * 2):
        for p, q in zip(found["on_train_batch_start"][k], model.parameters(), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-5, atol=1e-6)
        assert not front.same_bits(noisy[k], found["on_train_batch_start"][k])
        if k % accumulate == 0:
            opt.zero_grad()
            pair = [(x, y)]
        else:
            pair.append((x, y))
        if len(pair) == accumulate:
            with opt.perturb():
                for a, b in pair:
                    (front.loss_of(model, a, b) / accumulate).backward()
            opt.step()
        for p, q in zip(found["on_train_batch_end"][k], model.parameters(), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-5, atol=1e-6)
    end = found["on_train_end"][0]
    assert front.same_bits(found["on_validation_end"][-1], end)
    assert front.same_bits(found["on_train_epoch_end"][-1], end)
    assert front.same_bits(front.snapshot(module.net), end)
    assert "on_train_batch_start" not in vars(trainer.strategy)


@pytest.mark.parametrize("first", [True, False])
def test_lightning_averages_clean_weights_in_any_order(first: bool, tmp_path: Path) -> None:
    """test_peers.py, row 34."""
    callbacks = needed("lightning.pytorch", "Lightning").callbacks
    ends = []
    for kept in (True, False):
        ema = callbacks.EMAWeightAveraging(decay=0.5)
        own = [keep_perturbed()] if kept else []
        module = lightning_module(front.ssam, keep_perturbed=kept)
        trainer = lightning_trainer(
            tmp_path, callbacks=[*own, ema] if first else [ema, *own], enable_checkpointing=False
        )
        trainer.fit(module, loader_of(), loader_of(1))
        ends.append(front.snapshot(module.net))  # the average
        ends.append(module.validated[-1])
    assert front.same_bits(ends[0], ends[2])
    assert front.same_bits(ends[1], ends[3])
    assert not front.same_bits(ends[0], our_own(front.ssam, epochs=2))


def tunable(make: Callable[..., Any], **options: Any) -> Any:
    module = lightning_module(make, **options)
    module.lr = 0.05
    module.batch_size = 3
    module.noisy = []
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Tensor:
        module.noisy.append(front.snapshot(module.net))
        return step(batch, batch_idx)

    module.training_step = training_step
    module.val_dataloader = lambda: loader_of(1)
    module.train_dataloader = lambda: DataLoader(loader_of().dataset, batch_size=module.batch_size)
    return module


@pytest.mark.parametrize("what", ["lr_find", "scale_batch_size"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_s_tuner_tries_with_noise_and_leaves_no_trace(
    accumulate: int, what: str, tmp_path: Path
) -> None:
    tuner = importlib.import_module("lightning.pytorch.tuner").Tuner if keep_perturbed() else None
    ends = []
    for tuned in (True, False):
        module = tunable(front.ssam, keep_perturbed=True)
        trainer = lightning_trainer(
            tmp_path,
            callbacks=[keep_perturbed()],
            enable_checkpointing=False,
            accumulate_grad_batches=accumulate,
        )
        clean = front.snapshot(module.net)
        if tuned:
            if what == "lr_find":
                found = tuner(trainer).lr_find(
                    module, num_training=6, update_attr=False, min_lr=1e-6, max_lr=1e-4
                )
                assert len(found.results["loss"]) == 6
            else:
                tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=2)
            assert front.same_bits(front.snapshot(module.net), clean)
            assert len(module.noisy) > 3
            assert all(not front.same_bits(one, clean) for one in module.noisy)
            assert not front.same_bits(module.noisy[0], module.noisy[-1])
        module.batch_size = 12
        trainer.fit(module)
        ends.append(front.snapshot(module.net))
    assert front.same_bits(*ends)
    assert not front.same_bits(ends[0], clean)


def test_lightning_on_two_processes_keeps_ranks_together(tmp_path: Path) -> None:
    needed("lightning.pytorch", "Lightning on two processes")
    program = Path(__file__).with_name("lightning_two_processes.py")
    root = str(Path(torch_ssam.__file__).parent.parent)
    path = os.pathsep.join([root, str(program.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [torch.load(tmp_path / f"rank{k}.pt", weights_only=True) for k in range(2)]
    assert front.same_bits(*ranks)
    assert front.same_bits(net_of(tmp_path / "end.ckpt"), ranks[0])
    for end, start in zip(ranks[0], front.Net().parameters(), strict=True):
        assert not torch.equal(end, start)


# -- Hugging Face Trainer ------------------------------------------------------------------------------------


class Text(Dataset[dict[str, Tensor]]):
    """Windows of 32 bytes of the source of argparse."""

    def __init__(self, count: int = 64) -> None:
        raw = inspect.getsource(argparse).encode()[: 32 * count]
        self.rows = torch.tensor(list(raw)).view(count, 32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[k], "labels": self.rows[k]}


def transformer() -> Any:
    transformers = needed("transformers", "Hugging Face Trainer")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=256,
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def hugging_face(root: Path, model: Any, opt: Any, **options: Any) -> Any:
    transformers = needed("transformers", "Hugging Face Trainer")
    needed("accelerate", "Hugging Face Trainer")
    arguments = transformers.TrainingArguments(
        output_dir=str(root),
        **{
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "save_steps": 3,
            "learning_rate": 0.1,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 3,
            **options,
        },
    )
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=Text(), eval_dataset=Text(8), optimizers=(opt, None)
    )


def saved_by_hugging_face(root: Path, step: int) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    loaded: dict[str, Tensor] = load_file(root / f"checkpoint-{step}" / "model.safetensors")
    return loaded


def noise_on(model: Any, kind: str = "ssam") -> Any:
    if kind == "ssam":
        opt: Any = torch_ssam.SSAM(
            model.parameters(), lr=0.1, noise_std=0.01, momentum=0.9, keep_perturbed=True, seed=5
        )
    elif kind == "adamw":
        opt = torch_ssam.SSAMAdamW(model.parameters(), lr=0.01, noise_std=0.01, keep_perturbed=True, seed=5)
    else:
        base = torch.optim.AdamW(model.parameters(), lr=0.01)
        opt = torch_ssam.wrap(base, 0.01, keep_perturbed=True, seed=5)
    opt.attach(model)
    return opt


@pytest.mark.parametrize("kind", ["ssam", "adamw", "wrap"])
def test_hugging_face_trainer_learns_saves_clean_and_resumes_in_the_same_bits(
    kind: str, tmp_path: Path
) -> None:
    model = transformer()
    opt = noise_on(model, kind)
    trainer = hugging_face(tmp_path / "whole", model, opt)
    trainer.train()
    history = [row["train_loss"] for row in trainer.state.log_history if "train_loss" in row]
    assert history[-1] < 5.6  # log 256 = 5.545 at the start, and it falls
    assert opt.draw == 6
    noisy = front.snapshot(model)
    opt.eval()
    clean = front.snapshot(model)
    assert not front.same_bits(noisy, clean)
    saved = saved_by_hugging_face(tmp_path / "whole", 6)
    own = dict(model.named_parameters())
    assert set(saved) <= set(own)
    assert front.same_bits(saved.values(), [own[name] for name in saved])

    other = transformer()
    resumed = noise_on(other, kind)
    hugging_face(tmp_path / "rest", other, resumed).train(str(tmp_path / "whole" / "checkpoint-3"))
    resumed.eval()
    assert front.same_bits(front.snapshot(other), clean)


def test_hugging_face_trainer_evaluates_clean_weights_in_bf16_with_accumulation(tmp_path: Path) -> None:
    model = transformer()
    opt = noise_on(model)
    trainer = hugging_face(
        tmp_path, model, opt, bf16=True, gradient_accumulation_steps=2, max_steps=3, save_steps=100
    )
    trainer.train()
    assert opt.draw == 3
    trainer.evaluate(Text(4))
    after = front.snapshot(model)
    opt.eval()
    assert front.same_bits(front.snapshot(model), after), "evaluate() saw perturbed weights"


@pytest.mark.parametrize("kind", ["ssam", "wrap"])
def test_hugging_face_trainer_loads_the_best_model_at_the_end(kind: str, tmp_path: Path) -> None:
    model = transformer()
    opt = noise_on(model, kind)
    for group in opt.param_groups:
        group["lr"] *= 100.0  # so that the loss does not fall all the way
    trainer = hugging_face(
        tmp_path,
        model,
        opt,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        lr_scheduler_type="constant",
    )
    trainer.train()
    losses = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    assert best != max(losses), "the best checkpoint should not be the last one"
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    saved = saved_by_hugging_face(tmp_path, best)
    own = dict(model.named_parameters())

    assert trainer.evaluate()["eval_loss"] == losses[best]  # what was saved, and is evaluated again, is clean
    assert front.same_bits(saved.values(), [own[name] for name in saved])
    opt.train()
    assert not any(torch.equal(saved[name], own[name]) for name in saved)
    loss = model(input_ids=Text(4).rows, labels=Text(4).rows).loss  # and it trains on
    loss.backward()
    opt.step()
    opt.eval()
    assert not any(torch.equal(saved[name], own[name]) for name in saved)


def test_hugging_face_trainer_makes_the_optimizer_from_class_and_options(tmp_path: Path) -> None:
    transformers = needed("transformers", "Hugging Face Trainer")
    model = transformer()
    options = {"noise_std": 0.01, "keep_perturbed": True, "lr": 0.1, "seed": 5}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Text(),
        optimizer_cls_and_kwargs=(torch_ssam.SSAM, options),
    )
    trainer.create_optimizer().attach(model)
    trainer.train()
    trainer.save_model(str(tmp_path / "end"))
    optimizer = trainer.optimizer.optimizer
    assert optimizer.draw == 2
    optimizer.eval()
    from safetensors.torch import load_file

    own = dict(model.named_parameters())
    for name, value in load_file(tmp_path / "end" / "model.safetensors").items():
        assert front.same_bits([value], [own[name]])


# -- Accelerate ----------------------------------------------------------------------------------------------


def accelerator_of(**options: Any) -> Any:
    """A new one: Accelerate shares its precision with all that the process made before."""
    accelerate = needed("accelerate", "Accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    return accelerate.Accelerator(cpu=True, **options)


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("way", ["closure", "kept", "perturb"])
def test_accelerate_trains_as_our_own_loop_does_and_saves_clean(way: str, kind: str, tmp_path: Path) -> None:
    accelerator = accelerator_of()
    model = front.Net()
    plain = MAKERS[kind](model, keep_perturbed=way == "kept")
    plain.attach(model)
    model, opt, loader = accelerator.prepare(model, plain, loader_of())
    opt.train()
    for x, y in loader:
        if way == "closure":

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                opt.zero_grad()
                loss = front.loss_of(model, x, y)
                accelerator.backward(loss)
                return loss

            opt.step(closure)
            continue
        opt.zero_grad()
        if way == "perturb":
            with plain.perturb():
                accelerator.backward(front.loss_of(model, x, y))
        else:
            accelerator.backward(front.loss_of(model, x, y))
        accelerator.clip_grad_norm_(model.parameters(), 1e9)
        opt.step()
    accelerator.save_state(str(tmp_path))
    accelerator.save_model(model, str(tmp_path / "model"))
    opt.eval()
    expected = our_own(MAKERS[kind], epochs=1)
    assert front.same_bits(front.snapshot(model), expected)
    from safetensors.torch import load_file

    for folder in (tmp_path, tmp_path / "model"):
        saved = load_file(folder / "model.safetensors")
        assert front.same_bits([saved[name] for name, _ in model.named_parameters()], expected)

    opt.train()
    front.by_stock_loop(opt, model, front.batches(2)) if way == "kept" else None
    accelerator.load_state(str(tmp_path))
    opt.eval()
    assert front.same_bits(front.snapshot(model), expected)
    assert plain.draw == 4


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_accelerate_accumulates_clips_and_warms_up_with_one_draw_a_step(kind: str) -> None:
    """A learning rate that warms up beside a ramp of the noise; the norms that are clipped are noted."""
    accelerator = accelerator_of(gradient_accumulation_steps=2)

    def schedules(opt: Any) -> tuple[Any, Any]:
        warm_up = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: (step + 1) / 4)
        return warm_up, torch_ssam.schedules.LambdaNoiseStd(opt, lambda step: (step + 1) / 2)

    model = front.Net()
    plain = MAKERS[kind](model, keep_perturbed=True)
    warm_up, ramp = schedules(plain)
    model, opt, loader, warm_up = accelerator.prepare(model, plain, loader_of(8), warm_up)
    opt.train()
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(front.loss_of(model, x, y))
            if accelerator.sync_gradients:
                plain.note_grad_norm(accelerator.clip_grad_norm_(model.parameters(), 1.0), 1.0)
                ramp.step()  # keep_perturbed draws the next noise in step()
            opt.step()
            warm_up.step()
            opt.zero_grad()
    found = plain.metrics()
    opt.eval()
    assert plain.draw == 4
    own = front.Net()
    reference = MAKERS[kind](own)
    warm_up, ramp = schedules(reference)
    todo = front.batches(8)
    norms = []
    for k in range(0, 8, 2):
        reference.zero_grad()
        with reference.perturb():
            for x, y in todo[k : k + 2]:
                (front.loss_of(own, x, y) / 2).backward()
        norms.append(float(nn.utils.clip_grad_norm_(own.parameters(), 1.0)))
        reference.step()
        warm_up.step()
        ramp.step()
    assert front.same_bits(front.snapshot(model), front.snapshot(own))
    assert found["grad_norm"] == pytest.approx(sum(norms) / 4)
    assert found["grad_clipped"] == sum(norm > 1.0 for norm in norms) / 4 > 0


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_accelerate_trains_in_bf16(kind: str) -> None:
    accelerator = accelerator_of(mixed_precision="bf16")
    model = front.Net()
    before, start = front.loss_of(model, *front.data()).item(), front.snapshot(model)
    plain = MAKERS[kind](model, keep_perturbed=True, noise_std=0.01)
    model, opt, loader = accelerator.prepare(model, plain, loader_of(8))
    opt.train()
    for x, y in loader:
        opt.zero_grad()
        accelerator.backward(front.loss_of(model, x, y))
        opt.step()
    opt.eval()
    assert plain.draw == 8
    own = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    assert all(
        p.dtype == torch.float32 and not torch.equal(p, q)
        for p, q in zip(own.parameters(), start, strict=True)
    )
    assert front.loss_of(own, *front.data()).item() < before


# -- skorch --------------------------------------------------------------------------------------------------


@front.both_rules
def test_skorch_trains_as_our_own_loop_does_and_saves_clean(make: Any, tmp_path: Path) -> None:
    own_options = {"optimizer__momentum": 0.9, "optimizer__weight_decay": 0.01}
    is_ssam = make is front.ssam
    skorch = needed("skorch", "skorch")
    todo = front.batches(4)
    x, y = torch.cat([x for x, _ in todo]), torch.cat([y for _, y in todo])
    net = skorch.NeuralNet(
        front.Net,
        criterion=nn.MSELoss,
        optimizer=torch_ssam.SSAM if is_ssam else torch_ssam.SSAMAdamW,
        lr=0.05,
        optimizer__noise_std=0.3,
        **(own_options if is_ssam else {"optimizer__weight_decay": 0.1}),
        optimizer__seed=7,
        max_epochs=2,
        batch_size=12,
        iterator_train__shuffle=False,
        train_split=None,
        verbose=0,
    )
    net.fit(x, y)
    assert net.optimizer_.draw == 8
    expected = our_own(make, epochs=2)
    for own, other in zip(net.module_.parameters(), expected, strict=True):
        torch.testing.assert_close(own.detach(), other, rtol=1e-5, atol=1e-6)
    assert len(net.history) == 2
    net.save_params(f_params=tmp_path / "net.pt", f_optimizer=tmp_path / "opt.pt")
    saved = torch.load(tmp_path / "net.pt", weights_only=True)
    assert front.same_bits(saved.values(), net.module_.parameters())
    twin = copy.deepcopy(net).initialize()
    twin.load_params(f_params=tmp_path / "net.pt", f_optimizer=tmp_path / "opt.pt")
    for one in (net, twin):
        one.partial_fit(x, y)
    assert front.same_bits(net.module_.parameters(), twin.module_.parameters())
