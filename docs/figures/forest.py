"""All settings of docs/results.md on one picture: S-SAM minus SGD, and minus SAM in the same time, with 95% intervals.

The numbers are those of the page's table, read from it, so that picture and page cannot differ. The site draws it; alone:
python docs/figures/forest.py forest.png. Tests: tests/python/test_docs_results.py.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt


class Row(NamedTuple):
    setting: str
    minus_sgd: tuple[float, float]  # mean and half-width
    minus_sam: tuple[float, float]


def estimate(cell: str) -> tuple[float, float]:
    mean, half = re.fullmatch(r"([+-]\d+\.\d+) ± (\d+\.\d+)", cell.strip("* ")).groups()
    return float(mean), float(half)


def rows(page: str) -> list[Row]:
    """The table whose head is "at full length", one row a setting."""
    lines = iter(page.splitlines())
    for line in lines:
        if line.startswith("| at full length"):
            break
    next(lines)  # the rule below the head
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        setting, _, _, sgd, sam = line.strip("|").split("|")
        found.append(Row(setting.replace("*", "").strip(), estimate(sgd), estimate(sam)))
    return found


def draw(found: list[Row]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.4), sharey=True, layout="constrained")
    for axis, title, which in zip(
        axes, ("minus SGD, equal gradients", "minus SAM, equal time"), (1, 2), strict=True
    ):
        axis.axvline(0, color="0.6", linewidth=1, zorder=0)
        for place, row in enumerate(found):
            mean, half = row[which]
            color = "0.55" if abs(mean) <= half else "C0" if mean > 0 else "C3"
            axis.errorbar(mean, place, xerr=half, fmt="o", color=color, markersize=5, linewidth=2)
        axis.set(title=title, xlabel="points")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(found)), [row.setting for row in found])
    axes[0].invert_yaxis()
    figure.suptitle(
        "S-SAM as validation chose it: blue ahead, red behind, grey not shown to differ", size="medium"
    )


HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()  # the site runs it in this folder
if __name__ == "__main__":
    draw(rows((HERE.parent / "results.md").read_text(encoding="utf-8")))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".png"):
        plt.savefig(sys.argv[1], dpi=160)
