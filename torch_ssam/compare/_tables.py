"""The tables of a comparison, made from its records alone. Tests: tests/python/test_compare.py."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch_ssam._common.html_page import Table

from . import _deployment
from ._compare import Comparison
from ._method import Method


def score_name(comparison: Comparison) -> str:
    """What the score is."""
    return "test accuracy %" if comparison.data.classifies else "test R² %"


def options_text(options: dict[str, Any] | None) -> str:
    """The options in words."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in (options or {}).items()
    )


def at_edge(comparison: Comparison, method: Method) -> bool:
    """Whether a value that the grid varies was chosen at its least or greatest."""
    chosen, grid = comparison.chosen(method), comparison.setting.grid(method)
    if chosen is None:
        return False
    for name, value in chosen.items():
        values = {point[name] for point in grid}
        if len(values) > 2 and value in (min(values), max(values)):
            return True
    return False


def main_table(comparison: Comparison) -> Table:
    """Every method at the equal budget of gradients."""
    sgd, rows = comparison.method("sgd"), []
    for method in comparison.methods:
        results = comparison.results(method)
        diverged = sum(bool(result["diverged"]) for result in results.values())
        rows.append(
            [
                method.title,
                str(comparison.epochs(method)),
                _shown(comparison, method, "score", 2),
                "" if method is sgd else comparison.difference(method, sgd).text(2, sign=True),
                _shown(comparison, method, "loss", 3),
                *([_shown(comparison, method, "calibration error", 1)] if comparison.data.classifies else []),
                _shown(comparison, method, "seconds", 1),
                str(len(results)) + (f" ({diverged} diverged)" if diverged else ""),
                options_text(comparison.chosen(method)) + (" (edge)" if at_edge(comparison, method) else ""),
            ]
        )
    header = ["", "epochs", score_name(comparison), "minus SGD", "test loss"]
    header += ["ECE %"] if comparison.data.classifies else []
    return Table(
        "Equal budget of gradients",
        [*header, "CPU seconds", "seeds", "options chosen"],
        rows,
        "Mean ± half of the 95% interval (Student's t) over seeds; minus SGD: of the differences, seed by seed. Intervals "
        "cover the seeds, not the choice of options, and are not corrected for the number of methods. CPU seconds: of the "
        "training loop, one thread. ECE: expected calibration error, 15 bins. edge: at an end of a grid of three "
        "values or more.",
    )


def time_table(comparison: Comparison) -> Table:
    """Every method with the epochs that SGD's time allows."""
    sgd, rows = comparison.method("sgd"), []
    sam = next((method for method in comparison.methods if method.name == "sam"), None)
    for method in comparison.methods:
        ratio, epochs = comparison.time_ratio(method), comparison.epochs(method, "time")
        rows.append(
            [
                method.title,
                "" if ratio is None else f"{ratio:.2f}",
                "" if ratio is None else "more than SGD's time" if method.budget > 1 else str(epochs),
                comparison.estimate(method, "score", "time").text(2),
                "" if method is sgd else comparison.difference(method, sgd, arm="time").text(2, sign=True),
                ""
                if sam is None or method is sam
                else comparison.difference(method, sam, arm="time").text(2, sign=True),
            ]
        )
    return Table(
        "Equal time",
        ["", "a step's time / SGD's", "epochs", score_name(comparison), "minus SGD", "minus SAM"],
        rows,
        "Epochs such that the whole takes SGD's processor time, by the time of a step, all methods measured in turns. Where "
        "they differ by less than a tenth from those of equal gradients, these are the same runs.",
    )


def robustness_table(comparison: Comparison) -> Table:
    """Scores with other learning rates and epochs than the chosen, and with rounded weights."""
    setting, rows = comparison.setting, []
    columns = [("lr", f) for f in sorted({*setting.lr_factors, 1.0})]
    columns += [("epochs", f) for f in sorted({*setting.epoch_factors, 1.0})]
    for method in comparison.methods:
        row = [method.title]
        row += [comparison.robustness(method, what, factor).text(1) for what, factor in columns]
        row += [_shown(comparison, method, f"quantised {bits}", 1) for bits in setting.bits]
        rows.append(row)
    return Table(
        f"Robustness: {score_name(comparison)}",
        ["", *(f"{what} × {factor:g}" for what, factor in columns), *(f"{b} bits" for b in setting.bits)],
        rows,
        f"lr and epochs: options as chosen, but for this factor; seeds 0 to {setting.robustness_seeds - 1}. Bits: of the "
        f"weights, rounded after training, each tensor by its own step; all seeds."
        if setting.robustness_seeds
        else "Bits: of the weights, rounded after training, each tensor by its own step.",
    )


def sharpness_table(comparison: Comparison) -> Table:
    """Fit and sharpness at the end of training."""
    setting, rows = comparison.setting, []
    noisy = comparison.data.correct is not None
    for method in comparison.methods:
        rows.append(
            [
                method.title,
                _shown(comparison, method, "training loss", 3),
                _shown(comparison, method, "training score", 1),
                *([_shown(comparison, method, "wrong labels learnt", 1)] if noisy else []),
                _shown(comparison, method, "sharpness", 4),
                _shown(comparison, method, "filter sharpness", 4),
            ]
        )
    header = ["", "training loss", "training score", *(["wrong labels learnt %"] if noisy else [])]
    return Table(
        "Fit and sharpness",
        [*header, "sharpness", "sharpness by filters"],
        rows,
        f"torch_ssam.sharpness.average of the training loss on 1,000 examples: E L(w + ξ) - L(w) with noise_std "
        f"{setting.sharpness_std:g}, and with {setting.sharpness_filter_std:g} of each filter's norm, "
        f"{setting.sharpness_draws} antithetic pairs, the same for all. Labels as they were trained on.",
    )


#: What options of an arm were chosen by, in words.
CHOSEN_BY = {"gradients": "clean accuracy", "target": "accuracy under disturbances"}


def deployment_table(comparison: Comparison, arm: str = "target") -> Table:
    """Accuracy with rounded and with noisy weights; without rows where it was not measured.

    Args:
        comparison: of a setting with deployment=True.
        arm: "target", options chosen by accuracy under disturbances, or "gradients", by clean accuracy.
    """
    levels = [("bits", bits) for bits in _deployment.BITS] + [("noise", std) for std in _deployment.NOISE]
    rows = []
    for method in comparison.methods if comparison.setting.deployment else ():
        measures = ["score", *map(measure_of, levels), _deployment.WITH_ACTIVATIONS, *PLAIN]
        row = [
            comparison.estimate(method, comparison.resolved(method, measure, arm), arm).text(1)
            for measure in measures
        ]
        rows.append([method.title, *row, options_text(comparison.chosen(method, arm))])
    names = map(_deployment.name_of, levels)
    target = ", ".join(map(_deployment.name_of, _deployment.TARGET))
    return Table(
        f"Rounded and noisy weights, options chosen by {CHOSEN_BY[arm]}",
        ["", "clean", *names, "3 bits, activations 8", "2 bits, plain", "noise 0.3, plain", "options chosen"],
        rows,
        "Test accuracy in %, mean ± half of the 95% interval over seeds. Bits: 2^b - 1 levels, a step for each filter, each "
        "method under the rounding that is best for it: the step from the largest weight or of the least squared error, or "
        "GPTQ, with BatchNorm's statistics as trained or gathered anew. Noise: Gaussian, in units of each filter's largest "
        "weight, statistics gathered anew. Activations 8: weights of 3 bits and layers' inputs of 8, step of the least squared "
        "error, statistics gathered anew. Plain: the step from the largest weight, statistics as they were trained. "
        f"Accuracy under disturbances: the mean of {target} on the validation split.",
    )


#: The disturbances of a naive deployment.
PLAIN = (
    _deployment.key("bits", 2, "absmax", "as_trained"),
    _deployment.key("noise", 0.3, statistics="as_trained"),
)


def measure_of(disturbance: tuple[str, float]) -> str:
    """What `Comparison.difference` calls a disturbance: of bits, each method under its best rounding."""
    kind, level = disturbance
    return f"bits {level:g}" if kind == "bits" else _deployment.key(kind, level)


def grid_table(comparison: Comparison) -> Table:
    """Validation scores of the whole grid."""
    rows = []
    arms = comparison.setting.arms if comparison.setting.deployment else ("gradients",)
    for method in comparison.methods:
        for options, result in comparison.grid(method):
            score = None if result is None else result["validation score"]
            target = None if result is None else result.get("target score")
            by = [arm for arm in arms if options == comparison.chosen(method, arm)]
            words = "chosen" if by and len(arms) == 1 else ", ".join(f"by {CHOSEN_BY[arm]}" for arm in by)
            texts = [_number(result, score), *([_number(result, target)] if len(arms) > 1 else [])]
            rows.append([method.title, options_text(options), *texts, words])
    return Table(
        "Tuning: validation score",
        ["", "options", "score", *(["under disturbances"] if len(arms) > 1 else []), ""],
        rows,
        "One run each, of a seed of its own. The test split is looked at with the chosen options only.",
    )


def overview_table(comparisons: list[Comparison]) -> Table:
    """One row a setting."""
    rows = []
    for comparison in comparisons:
        sgd, form = comparison.method("sgd"), comparison.best_ssam()
        sam = next((method for method in comparison.methods if method.name == "sam"), None)
        row = [comparison.name, _shown(comparison, sgd, "score", 2)]
        row.append("" if sam is None else comparison.estimate(sam, "score", "time").text(2))
        if form is None:
            row += [""] * 4
        else:
            row += [
                form.title,
                _shown(comparison, form, "score", 2),
                comparison.difference(form, sgd).text(2, sign=True),
                "" if sam is None else comparison.difference(form, sam, arm="time").text(2, sign=True),
            ]
        rows.append(row)
    return Table(
        "All settings: test score, mean and 95% interval",
        [
            "",
            "SGD",
            "SAM, SGD's time",
            "S-SAM by validation",
            "its score",
            "minus SGD",
            "minus SAM, equal time",
        ],
        rows,
        "S-SAM: the form with the best validation score; minus SGD at equal gradients. Differences are paired by seed.",
    )


def all_tables(comparison: Comparison) -> list[Table]:
    """The tables of one setting that have data, in the order of the report."""
    makers: list[Any] = [main_table, robustness_table, sharpness_table, grid_table]
    if comparison.setting.deployment:
        makers[1:1] = [partial(deployment_table, arm=arm) for arm in comparison.setting.arms]
    else:
        makers.insert(1, time_table)
    return [table for make in makers if (table := make(comparison)).has_data]


def _number(result: dict[str, Any] | None, score: float | None) -> str:
    return "" if result is None else "not finite" if score is None else f"{score:.2f}"


def _shown(comparison: Comparison, method: Method, measure: str, digits: int) -> str:
    return comparison.estimate(method, measure).text(digits)
