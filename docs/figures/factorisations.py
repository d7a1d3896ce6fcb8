"""What noise adds to the loss, for the factorisations (t, 1/t) of the product 1 (Lemma 3.2)."""

import matplotlib.pyplot as plt
import numpy as np

from torch_ssam import theory

t = np.geomspace(0.4, 2.5, 401)
layers = np.stack([t, 1 / t], axis=1)[:, :, None]  # a batch of networks of two layers and one coordinate

figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for eta, color in ((0.2, "C0"), (0.4, "C1"), (0.6, "C2")):
    axis.plot(t, theory.average_sharpness(layers, eta), color=color, label=f"noise_std = {eta}")
    axis.plot(t, eta**2 / 2 * theory.hessian_trace(layers), "--", color=color, linewidth=1)
    axis.plot(1, theory.minimal_average_sharpness([1.0], eta, 2), "o", color=color, markersize=5)
axis.set(xscale="log", xlabel="w_1, with w_2 = 1 / w_1", ylabel="average sharpness")
axis.set_xticks([0.5, 1, 2], ["0.5", "1", "2"])
axis.minorticks_off()
axis.legend(frameon=False)
