"""A Lightning run on two gloo processes; test_frameworks.py starts it and looks at what it leaves in the folder."""

import sys
from pathlib import Path

import front_helpers as front
import torch
from test_frameworks import lightning_checkpoint, lightning_module, lightning_trainer, loader_of

folder = Path(sys.argv[1])
module = lightning_module(front.ssam, seed=None)
trainer = lightning_trainer(
    folder,
    devices=2,
    strategy="ddp",
    max_epochs=1,
    callbacks=[lightning_checkpoint(folder, filename="end")],
)
trainer.fit(module, loader_of(4))
torch.save(front.snapshot(module.net), folder / f"rank{trainer.global_rank}.pt")
trainer.strategy.barrier()
