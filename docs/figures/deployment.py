"""Rounded and noisy weights, from every run of docs/data/deployment.csv: the picture and the tables of the pages.

The site draws it; alone: python docs/figures/deployment.py picture.png. Without a file it writes the tables anew into
docs/results_deployment.md, each between two comments. Tests: tests/python/test_docs_results.py.
"""

import csv
import math
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

#: Half the width of a 95% interval of Student's t, in standard errors, by the number of values.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}

SETTINGS = {
    "deploy-mlp": "MLP",
    "deploy-cnn-bn": "CNN with BatchNorm",
    "deploy-resnet": "Residual network",
    "deploy-vit": "Vision transformer",
    "deploy-transformer": "Transformer on text",
    "deploy-finetuned": "Fine-tuned vision transformer",
}
#: Trained without noise and without rounding; with noise; for 2 bits.
PLAIN = ("sgd", "sgd-clip", "sam", "sam-clip", "adamw", "adamw-clip")
NOISY = ("ssam-deploy", "adamw-deploy")
TRAINED = ("qat", "qat-tuned", "adamw-qat")
TITLES = {
    "sgd": "SGD",
    "sgd-clip": "SGD, clipped",
    "sam": "SAM",
    "sam-clip": "SAM, clipped",
    "ssam-clip": "S-SAM isotropic, clipped",
    "ssam-deploy": "**S-SAM, range noise, clipped**",
    "ssam-adaptive": "S-SAM, noise that sets itself, clipped",
    "adamw": "AdamW",
    "adamw-clip": "AdamW, clipped",
    "adamw-deploy": "**AdamW, range noise, clipped**",
    "adamw-adaptive": "AdamW, noise that sets itself, clipped",
    "qat": "trained for 2 bits (LSQ)",
    "qat-tuned": "SGD, then trained for 2 bits (LSQ)",
    "adamw-qat": "AdamW, trained for 2 bits (LSQ)",
}
#: Columns of the tables: the head, and the measures of which the best is taken.
ROUNDINGS = ("absmax as_trained", "absmax anew", "mse as_trained", "mse anew", "gptq anew")
COLUMNS = {
    "clean": ["score"],
    **{f"{b} bits": [f"score, bits {b} {how}" for how in ROUNDINGS] for b in (4, 3, 2)},
    **{f"noise {n}": [f"score, noise {n} anew"] for n in (0.1, 0.2, 0.3)},
    "2 bits, plain": ["score, bits 2 absmax as_trained"],
    "noise 0.3, plain": ["score, noise 0.3 as_trained"],
    "3 bits, activations 8": ["score, bits 3 mse anew, activations 8"],
}
PARTS = {"target": "chosen at the target", "gradients": "equal gradients"}

Runs = dict[str, dict[str, dict[str, list[dict[str, str]]]]]


def read(path: Path) -> Runs:
    """Runs by setting, part and method."""
    found: Runs = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["setting"]][row["part"]][row["method"]].append(row)
    return found


def estimate(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval; nan for one value."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    return statistics.fmean(values), STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def best(runs: list[dict[str, str]], measures: list[str]) -> tuple[float, float] | None:
    """Of the measure with the best mean; None where none was taken."""
    taken = [name for name in measures if all(run.get(name) for run in runs)]
    return max((estimate([float(run[name]) for run in runs]) for name in taken), default=None)


def text(mean: float, half: float) -> str:
    """One seed has no interval."""
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def table(found: Runs, setting: str, arm: str = "target") -> list[str]:
    """The lines of a table in Markdown, with the methods in the order of TITLES."""
    methods = found[setting][PARTS[arm]]
    lines = ["| | " + " | ".join(COLUMNS) + " | seeds |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
    for name, title in TITLES.items():
        if name in methods:
            cells = [best(methods[name], measures) for measures in COLUMNS.values()]
            texts = ["" if cell is None else text(*cell) for cell in cells]
            lines.append(f"| {title} | " + " | ".join(texts) + f" | {len(methods[name])} |")
    return lines


def resolved(runs: list[dict[str, str]], measures: list[str]) -> tuple[float, dict[str, float]]:
    """The best mean over the measures, and that measure by seed."""
    taken = [name for name in measures if all(run.get(name) for run in runs)]
    by_seed = [{run["seed"]: float(run[name]) for run in runs} for name in taken]
    return max(((statistics.fmean(one.values()), one) for one in by_seed), key=lambda found: found[0])


def minus(form: dict[str, float], other: dict[str, float]) -> tuple[float, float]:
    """Difference by seed, and half the width of its interval."""
    return estimate([form[seed] - other[seed] for seed in sorted(form.keys() & other.keys())])


def best_of(
    methods: dict[str, list[dict[str, str]]], names: tuple[str, ...], measures: list[str]
) -> dict[str, float]:
    """By seed, of the method with the best mean among these."""
    return max(
        (resolved(methods[name], measures) for name in names if name in methods), key=lambda found: found[0]
    )[1]


#: The goals written down beforehand: the head, the measure, what it is compared with, and how far above that is asked.
GOALS = (
    ("clean, minus the best clean", "clean", PLAIN, -0.5),
    ("3 bits, minus its own clean", "3 bits", None, -1.0),
    ("2 bits, minus the best without noise", "2 bits", PLAIN, 5.0),
    ("noise 0.2, minus the same", "noise 0.2", PLAIN, 5.0),
    ("noise 0.3, minus the same", "noise 0.3", PLAIN, 10.0),
    ("2 bits, minus trained for 2 bits", "2 bits", TRAINED, -1.0),
)


def goals(found: Runs) -> list[tuple[str, list[tuple[float, float]]]]:
    """By setting, range noise with clipping as chosen at the target, minus what each goal compares it with."""
    rows = []
    for setting in [name for name in SETTINGS if name in found]:
        target, clean = (found[setting][PARTS[arm]] for arm in ("target", "gradients"))
        gaps = []
        for _, measure, others, _ in GOALS:
            form = best_of(target, NOISY, COLUMNS[measure])
            arm = clean if measure == "clean" else target
            other = (
                best_of(target, NOISY, COLUMNS["clean"])
                if others is None
                else best_of(arm, others, COLUMNS[measure])
            )
            gaps.append(minus(form, other))
        rows.append((setting, gaps))
    return rows


def goal_table(found: Runs) -> list[str]:
    """The lines of the table of goals; bold where the mean reaches what was asked."""
    lines = ["| | " + " | ".join(goal[0] for goal in GOALS) + " |", "|---|" + "---:|" * len(GOALS)]
    lines.append("| asked | " + " | ".join(f"at least {goal[3]:+g}" for goal in GOALS) + " |")
    for setting, gaps in goals(found):
        cells = [f"{mean:+.1f} ± {half:.1f}" for mean, half in gaps]
        marked = [
            f"**{cell}**" if gap[0] >= goal[3] else cell
            for cell, gap, goal in zip(cells, gaps, GOALS, strict=True)
        ]
        lines.append(f"| {SETTINGS[setting]} | " + " | ".join(marked) + " |")
    return lines


def with_tables(page: str, found: Runs) -> str:
    """The page with its tables made anew: `<!-- table: SETTING ARM -->`, or `<!-- goals -->`, to `<!-- end -->`."""

    def made(match: re.Match[str]) -> str:
        return "\n".join([match[1], "", *table(found, match[2], match[3]), "", match[4]])

    page = re.sub(
        r"(<!-- goals -->)\n.*?(<!-- end -->)",
        lambda match: "\n".join([match[1], "", *goal_table(found), "", match[2]]),
        page,
        flags=re.S,
    )
    return re.sub(r"(<!-- table: (\S+) (\S+) -->)\n.*?(<!-- end -->)", made, page, flags=re.S)


#: What the picture shows of a setting: SGD or AdamW, the same clipped, S-SAM, by colour.
LINES = (
    (("sgd", "adamw"), "#5f6368", "without noise"),
    (("sgd-clip", "adamw-clip"), "#d55e00", "weights clipped"),
    (("ssam-deploy", "adamw-deploy"), "#0072b2", "S-SAM: clipped, noise while training"),
)


def draw(found: Runs, settings: list[str]) -> None:
    figure, axes = plt.subplots(
        2, len(settings), figsize=(3.0 * len(settings) + 0.6, 6.4), sharey=True, layout="constrained"
    )
    for column, setting in zip(axes.T.reshape(len(settings), 2), settings, strict=True):
        methods = found[setting][PARTS["target"]]
        for names, colour, label in LINES:
            name = names[1] if names[1] in methods else names[0]
            if name not in methods:
                continue
            runs = methods[name]
            bits = [best(runs, COLUMNS[head]) for head in ("clean", "4 bits", "3 bits", "2 bits")]
            noise = [best(runs, COLUMNS[head]) for head in ("clean", "noise 0.1", "noise 0.2", "noise 0.3")]
            plain = [
                best(runs, [m]) for m in ("score", *(f"score, bits {b} absmax as_trained" for b in (4, 3, 2)))
            ]
            for axis, line, style in (
                (column[0], bits, "-"),
                (column[0], plain, ":"),
                (column[1], noise, "-"),
            ):
                points = [(x, one) for x, one in enumerate(line) if one is not None]
                axis.errorbar(
                    [x for x, _ in points],
                    [one[0] for _, one in points],
                    yerr=[0.0 if math.isnan(one[1]) else one[1] for _, one in points]
                    if style == "-"
                    else None,
                    color=colour,
                    linestyle=style,
                    marker="o" if style == "-" else None,
                    markersize=4,
                    capsize=2,
                    label=label if style == "-" else None,
                )
        column[0].set(title=SETTINGS[setting], xlabel="bits a weight")
        column[0].set_xticks(range(4), ["float", "4", "3", "2"])
        column[1].set(xlabel="noise / largest weight of its filter")
        column[1].set_xticks(range(4), ["0", "0.1", "0.2", "0.3"])
        for axis in column:
            axis.grid(alpha=0.3)
            axis.set_ylim(8, 91)
    for axis in axes[:, 0] if len(settings) > 1 else axes:
        axis.set_ylabel("test accuracy %")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")


HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()  # the site runs it in this folder
if __name__ == "__main__":
    every = read(HERE.parent / "data" / "deployment.csv")
    if "sphinx" in sys.modules or sys.argv[1:]:
        draw(every, [setting for setting in SETTINGS if setting in every])
        if len(sys.argv) == 2 and sys.argv[1].endswith(".png"):
            plt.savefig(sys.argv[1], dpi=160)
    else:
        page = HERE.parent / "results_deployment.md"
        page.write_text(with_tables(page.read_text(encoding="utf-8"), every), encoding="utf-8")
