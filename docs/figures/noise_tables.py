"""The tables of noise that sets itself, and of what it does to AdamW, from every run in docs/data.

python docs/figures/noise_tables.py writes them anew into docs/results_adaptive_noise.md and docs/adamw.md, each between
two comments. Tests: tests/python/test_docs_results.py.
"""

import csv
import re
import statistics
from collections import defaultdict
from pathlib import Path

import deployment
from deployment import estimate, text

NETWORKS = {
    "deploy-mlp": "MLP",
    "deploy-cnn-bn": "CNN with BatchNorm",
    "deploy-vit": "vision transformer, AdamW",
}
#: Columns of the 5 seeds' table: the head and the column of the CSV.
TESTED = {
    "clean": "score",
    "3 bits": "bits 3 mse anew",
    "2 bits": "bits 2 mse anew",
    "noise 0.2": "noise 0.2 anew",
    "noise 0.3": "noise 0.3 anew",
}
Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    """The rows of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def forms(rows: Rows) -> list[str]:
    """One seed: a line a form, clean accuracy and the mean over the disturbances, on the validation split."""
    found: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for row in rows:
        if row["purpose"] == "tune" and row["setting"] in NETWORKS:
            found[row["form"]][row["setting"]] = (float(row["validation score"]), float(row["target score"]))
    lines = ["| | " + " | ".join(NETWORKS.values()) + " | mean |", "|---|" + "---:|" * (len(NETWORKS) + 1)]
    for form, scores in found.items():
        pairs = [scores[name] for name in NETWORKS]
        pairs.append((statistics.fmean(p[0] for p in pairs), statistics.fmean(p[1] for p in pairs)))
        lines.append(
            f"| {form} | " + " | ".join(f"{clean:.1f}, {target:.1f}" for clean, target in pairs) + " |"
        )
    return lines


def seeds(rows: Rows) -> list[str]:
    """Test accuracy over the seeds: a line a network and form."""
    found: dict[tuple[str, str], Rows] = defaultdict(list)
    for row in rows:
        if row["purpose"] == "test" and row["setting"] in NETWORKS:
            found[row["setting"], row["form"]].append(row)
    lines = ["| | " + " | ".join(TESTED) + " | seeds |", "|---|" + "---:|" * (len(TESTED) + 1)]
    for (setting, form), runs in found.items():
        cells = [text(*estimate([float(run[column]) for run in runs])) for column in TESTED.values()]
        lines.append(f"| {NETWORKS[setting]}: {form} | " + " | ".join(cells) + f" | {len(runs)} |")
    return lines


def beside(rows: Rows, runs: deployment.Runs) -> list[str]:
    """The same minus tuned fixed noise, of the study's runs with the same seeds, clip of its own choice."""
    lines = ["| | " + " | ".join(TESTED) + " |", "|---|" + "---:|" * len(TESTED)]
    for setting, title in NETWORKS.items():
        methods = runs[setting][deployment.PARTS["target"]]
        tuned = next(methods[name] for name in deployment.NOISY if name in methods)
        for form in dict.fromkeys(row["form"] for row in rows if row["purpose"] == "test"):
            cells = []
            for column in TESTED.values():
                ours = {
                    row["seed"]: float(row[column])
                    for row in rows
                    if (row["setting"], row["form"], row["purpose"]) == (setting, form, "test")
                }
                if len(ours) < 2:
                    break  # one seed has no interval
                name = column if column == "score" else f"score, {column}"
                mean, half = deployment.minus(ours, {run["seed"]: float(run[name]) for run in tuned})
                cells.append(f"{mean:+.1f} ± {half:.1f}")
            if cells:
                lines.append(f"| {title}: {form} | " + " | ".join(cells) + " |")
    return lines


def gains(runs: deployment.Runs) -> list[str]:
    """AdamW clipped and with noise, chosen by clean accuracy, minus AdamW, from the study of deployment."""
    heads = ("clean", "3 bits", "2 bits", "noise 0.2")
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for setting in ("deploy-vit", "deploy-transformer"):
        if setting not in runs:
            continue
        methods = runs[setting][deployment.PARTS["gradients"]]
        for name in ("adamw-clip", "adamw-deploy", "adamw-adaptive"):
            gaps = []
            for head in heads:
                form, base = (
                    deployment.resolved(methods[m], deployment.COLUMNS[head])[1] for m in (name, "adamw")
                )
                gaps.append(deployment.minus(form, base))
            cells = " | ".join(f"{mean:+.1f} ± {half:.1f}" for mean, half in gaps)
            title = deployment.TITLES[name].replace("*", "").removeprefix("AdamW, ")
            lines.append(f"| {deployment.SETTINGS[setting]}: {title} | {cells} |")
    return lines


def with_tables(page: str, **tables: list[str]) -> str:
    """The page with these tables made anew: `<!-- table: NAME -->` to `<!-- end -->`."""

    def made(match: re.Match[str]) -> str:
        return "\n".join([match[1], "", *tables[match[2]], "", match[3]])

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", made, page, flags=re.S)


if __name__ == "__main__":
    docs = Path(__file__).resolve().parents[1]
    adaptive = read(docs / "data" / "adaptive_noise.csv")
    study = deployment.read(docs / "data" / "deployment.csv")
    made = {
        "forms": forms(adaptive),
        "seeds": seeds(adaptive),
        "beside": beside(adaptive, study),
        "gains": gains(study),
    }
    for name in ("results_adaptive_noise.md", "adamw.md"):
        page = docs / name
        page.write_text(with_tables(page.read_text(encoding="utf-8"), **made), encoding="utf-8")
