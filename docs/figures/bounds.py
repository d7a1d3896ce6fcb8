"""What the PAC-Bayes bounds add to an empirical risk of 0.1, against KL / n."""

import matplotlib.pyplot as plt
import numpy as np

from torch_ssam import theory

N, RISK = 30_000, 0.1
per_example = np.geomspace(1e-4, 0.3, 200)

figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for kind, style in (("maurer", "-"), ("thiemann", "--"), ("catoni", "-."), ("seeger", "-")):
    axis.plot(per_example, theory.pac_bayes_bound(RISK, per_example * N, N, 0.05, kind), style, label=kind)
axis.axhline(RISK, color="0.7", linewidth=1)
axis.set(
    xscale="log", ylim=(0, 1), xlabel="KL / n", ylabel="bound", title=f"empirical risk {RISK}, n = {N:,}"
)
axis.legend(frameon=False)
