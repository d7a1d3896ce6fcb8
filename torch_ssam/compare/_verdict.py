"""What a comparison answers, in sentences computed from its records: advice first, then the differences behind it.

Choices are made on the validation split, differences are of the test split. Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

import math

from . import _deployment
from ._compare import Comparison
from ._method import Method
from ._statistics import Estimate, paired
from ._tables import measure_of


def advice(comparison: Comparison) -> str:
    """Which optimizer to take, with the interval that says so.

    A method with noise is advised where the interval of its difference from the best one without noise lies above zero; both are
    the best of their kind on the validation split, at equal gradients, without controls and larger budgets.
    """
    arm = "target" if comparison.setting.deployment else "gradients"
    form, plain = _best(comparison, _noisy(comparison), arm), _best(comparison, _plain(comparison), arm)
    if form is None or plain is None:
        return "No advice yet: no method with noise, or none without, has test results."
    measures = [measure_of(level) for level in _deployment.TARGET] if arm == "target" else ["score"]
    gap = _mean_difference(comparison, form, plain, measures, arm)
    what = "points, the mean over the disturbances" if arm == "target" else "points"
    use, stay = (m.call(comparison.chosen(m, arm) or {}) for m in (form, plain))
    if gap.low > 0:
        return f"Use {use}: {gap.text(2, sign=True)} {what} over {plain.title} ({gap.n} seeds)."
    shown = "is worse" if gap.high < 0 else "is not shown to be better"
    return f"Stay with {stay}: {form.title} {shown}, {gap.text(2, sign=True)} {what} ({gap.n} seeds)."


def _noisy(comparison: Comparison) -> list[Method]:
    return [m for m in comparison.methods if m.is_noisy and m.budget == 1]


def _plain(comparison: Comparison) -> list[Method]:
    noisy = _noisy(comparison)
    return [
        m
        for m in comparison.methods
        if m not in noisy and m.budget == 1 and not m.split and not m.quantized_bits
    ]


def _best(comparison: Comparison, methods: list[Method], arm: str) -> Method | None:
    """The one with the best validation score by which the arm chooses, of those that have test results."""
    done = [m for m in methods if comparison.chosen(m, arm) is not None and comparison.results(m, arm)]
    return max(done, key=lambda m: comparison.validation_score(m, arm)) if done else None


def _mean_difference(
    comparison: Comparison, form: Method, plain: Method, measures: list[str], arm: str
) -> Estimate:
    """Of the mean over several measures, seed by seed."""

    def means(method: Method) -> dict[int, float]:
        found = [comparison.values(method, comparison.resolved(method, name, arm), arm) for name in measures]
        seeds = set(found[0]).intersection(*found[1:])
        return {seed: sum(values[seed] for values in found) / len(found) for seed in seeds}

    return paired(means(form), means(plain))


def verdict(comparison: Comparison) -> list[str]:
    """What was asked, answered from the numbers: S-SAM against SGD at equal gradients, against SAM at equal time.

    The form of S-SAM is the one with the best validation score, so that no choice was made on the test split.
    """
    if comparison.setting.deployment:
        return deployment_verdict(comparison)
    form = comparison.best_ssam()
    if form is None or not comparison.results(form) or not comparison.results(comparison.method("sgd")):
        return ["Not finished: no form of S-SAM has test results yet."]
    gap = comparison.difference(form, comparison.method("sgd"))
    lines = [
        advice(comparison),
        f"S-SAM as chosen on the validation split ({form.title}) minus SGD, equal gradients: {gap.text(2, sign=True)} "
        f"points over {gap.n} seeds: {direction(gap)}.",
    ]
    names = [method.name for method in comparison.methods]
    if "sam" in names:
        gap = comparison.difference(form, comparison.method("sam"), arm="time")
        lines.append(
            f"Minus SAM, equal time: {gap.text(2, sign=True)} points: {direction(gap)}."
            if gap.n
            else "Minus SAM, equal time: not run yet."
        )
    if "sgd-split" in names and form.split:
        gap = comparison.difference(form, comparison.method("sgd-split"))
        lines.append(
            f"Minus SGD whose batches are split alike, without noise: {gap.text(2, sign=True)} points: {direction(gap)}. "
            "Only this difference is due to the noise; the rest of the gain is BatchNorm's on smaller batches."
            if gap.n
            else "Minus SGD whose batches are split alike, without noise: not run yet."
        )
    forms = [m for m in comparison.methods if m.is_ssam and m.budget == 1 and comparison.results(m)]
    above = [m.title for m in forms if comparison.difference(m, comparison.method("sgd")).low > 0]
    below = [m.title for m in forms if comparison.difference(m, comparison.method("sgd")).high < 0]
    lines.append(
        f"Of {len(forms)} forms of S-SAM the interval of the difference from SGD is above zero for {_list(above)}, below "
        f"zero for {_list(below)}."
    )
    return lines


def deployment_verdict(comparison: Comparison) -> list[str]:
    """S-SAM against the best method without noise, each as chosen on the validation split under disturbances."""
    trained = [m for m in comparison.methods if m.quantized_bits]
    form, plain = (_best(comparison, of(comparison), "target") for of in (_noisy, _plain))
    if form is None or plain is None:
        return ["Not finished: no form of S-SAM, or no method without noise, has test results yet."]
    lines = [
        advice(comparison),
        f"Chosen on the validation split under disturbances: {form.title}; of the methods without noise, {plain.title}. "
        "Differences by seed, in points:",
    ]
    for kind, level in (("score", 0.0), *_deployment.TARGET):
        measure = "score" if kind == "score" else measure_of((kind, level))
        gap = comparison.difference(form, plain, measure, "target")
        where = "Clean" if kind == "score" else _deployment.name_of((kind, level)).capitalize()
        lines.append(f"{where}: {gap.text(2, sign=True)}: {direction(gap)}.")
    tuned = _best(comparison, trained, "target")
    if tuned is not None:
        gap = comparison.difference(form, tuned, "bits 2", "target")
        lines.append(
            f"At {tuned.quantized_bits} bits, minus {tuned.title}, which was trained for them: {gap.text(2, sign=True)}: "
            f"{direction(gap)}."
        )
    clean = _best(comparison, _noisy(comparison) + _plain(comparison), "gradients")
    if clean is not None:
        gap = paired(
            comparison.values(form, "score", "target"), comparison.values(clean, "score", "gradients")
        )
        lines.append(
            f"Clean, minus the best clean one of all ({clean.title}): {gap.text(2, sign=True)}: {direction(gap)}."
        )
    return lines


def direction(gap: Estimate) -> str:
    """Which side of zero a difference is on, as far as its interval says."""
    if not math.isfinite(gap.half_width):
        return "one seed, no interval"
    return "above" if gap.low > 0 else "below" if gap.high < 0 else "no difference shown"


def _list(names: list[str]) -> str:
    return "; ".join(names) or "none"
