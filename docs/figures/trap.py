"""O_R - O_R(0) along the balanced line w_1 = ... = w_L = m: a saddle at zero for L = 2, a minimum for L = 3."""

import matplotlib.pyplot as plt
import numpy as np

from torch_ssam import theory

ETA = 0.5
m = np.linspace(-0.3, 0.9, 601)

figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.4), layout="constrained")
for axis, depth in zip(axes, (2, 3), strict=True):
    least = theory.existence_threshold(ETA, depth)
    for ratio, color in ((0.7, "C0"), (1.1, "C1"), (2.0, "C2")):
        target = [ratio * least]
        zero = theory.regularized_loss(np.zeros((depth, 1)), target, ETA)
        values = theory.regularized_loss(np.stack([m] * depth, axis=1)[:, :, None], target, ETA)
        axis.plot(m, values - zero, color=color, label=f"w* = {ratio:g} thresholds")
        points = theory.critical_points(target, ETA, depth)
        for layer, mark in ((points.minimum, "o"), (points.saddle, "x")):
            at = np.full((depth, 1), float(np.ravel(layer)[0]))
            if np.isfinite(at).all():
                axis.plot(
                    at[0, 0], theory.regularized_loss(at, target, ETA) - zero, mark, color=color, markersize=5
                )
    axis.set(xlabel="m, the value of every layer", title=f"L = {depth}", ylim=(-0.18, 0.18))
    axis.axhline(0, color="0.8", linewidth=1, zorder=0)
axes[0].set_ylabel("O_R(m) - O_R(0)")
axes[1].legend(frameon=False, fontsize="small")
