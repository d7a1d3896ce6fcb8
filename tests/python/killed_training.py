"""Trains in child processes that are killed (SIGKILL) at random moments and started again from the last checkpoint,
until the run is through; then prints how often it was killed, for every mode. test_killed.py starts it and compares bits.

    python killed_training.py FOLDER SEED

The parent forks before any thread exists, so that a start costs milliseconds and many kills fit in a test. `make stress` kills
TORCH_SSAM_STRESS times as often.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import front_helpers as front
import torch
from odd_values import STRESS

STEPS = 40 * STRESS
KILLS = 6 * STRESS  # of each mode, at most
WITHOUT_REAPING = os.WEXITED | os.WNOHANG | os.WNOWAIT
MODES = {
    "perturb": (front.ssam, {}, front.by_perturb),
    "kept": (front.ssam, {"keep_perturbed": True}, front.by_stock_loop),
    "kept attached": (front.ssam, {"keep_perturbed": True}, front.by_stock_loop),
    "wrap kept": (front.wrapped_adamw, {"keep_perturbed": True}, front.by_stock_loop),
}


def run(folder: Path, mode: str) -> None:
    """From the last checkpoint to the end, with a checkpoint after every step."""
    make, options, drive = MODES[mode]
    path = folder / "checkpoint.pt"
    resumed = path.exists()
    model = front.Net(seed=3 if resumed else 0)
    opt = make(model, **{**options, "seed": 99 if resumed else 7})
    if mode == "kept attached":
        opt.attach(model)
    done = 0
    if resumed:
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        done = saved["done"]
    with open(folder / "starts", "a") as starts:
        print(done, file=starts)
    opt.train()
    for k in range(done, STEPS):
        with open(folder / "begun", "a") as begun:
            begun.write(".")
        drive(opt, model, [front.data(seed=1000 + k)])
        torch.save(
            {"model": model.state_dict(), "opt": opt.state_dict(), "done": k + 1}, folder / "writing.pt"
        )
        os.replace(folder / "writing.pt", path)
    opt.eval()
    torch.save(
        [*front.snapshot(model), *front.optimizer_bits(opt), torch.tensor(opt.draw)], folder / "end.pt"
    )


def steps_of(folder: Path) -> int:
    """Steps begun in all children so far."""
    begun = folder / "begun"
    return begun.stat().st_size if begun.exists() else 0


def kill_until_done(folder: Path, mode: str, seed: int) -> int:
    chance, kills = random.Random(seed), 0
    while True:
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            try:
                run(folder, mode)
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        if kills < KILLS:
            # After some steps more, and then at any moment of one: also while it writes its checkpoint.
            steps = steps_of(folder) + chance.randrange(10)
            while steps_of(folder) < steps and os.waitid(os.P_PID, child, WITHOUT_REAPING) is None:
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.01))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            kills += 1
        elif status != 0:
            raise SystemExit(f"a child failed with status {status}")
        else:
            return kills


if __name__ == "__main__":
    torch.set_num_threads(1)
    for make, options, drive in MODES.values():  # what torch imports at first use, once for all children
        warm = front.Net()
        opt = make(warm, **options)
        opt.train()
        drive(opt, warm, front.batches(1))
    for mode in sorted(MODES):
        folder = Path(sys.argv[1]) / mode
        folder.mkdir()
        print(f"{mode}:", kill_until_done(folder, mode, int(sys.argv[2])))
