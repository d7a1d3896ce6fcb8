"""The product S-SAM tends to, against the target, for three depths (Theorem 3.1b)."""

import matplotlib.pyplot as plt
import numpy as np

from torch_ssam import theory

ETA = 0.5
targets = np.linspace(0.0, 2.0, 801)

figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
axis.plot(targets, targets, color="0.7", linewidth=1, label="no noise")
for depth, color in ((2, "C0"), (3, "C1"), (4, "C2")):
    axis.plot(targets, theory.limit_product(targets, ETA, depth), color=color, label=f"L = {depth}")
    threshold = theory.existence_threshold(ETA, depth)
    axis.plot(threshold, 0, "o", color=color, markersize=5)
    lowest = theory.global_threshold(ETA, depth)
    axis.plot(
        lowest, theory.limit_product([lowest * (1 + 1e-9)], ETA, depth)[0], "s", color=color, markersize=5
    )
axis.set(xlabel="target w*", ylabel="product p", title=f"noise_std = {ETA}")
axis.legend(frameon=False)
