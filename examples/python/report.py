"""The demo's tables, made once and shown twice: with rich in the terminal and as Markdown in out/demo.md.

Tests: tests/python/test_demo.py.
"""

from __future__ import annotations

from typing import Any

from images import KNOBS, METHODS, interval

from torch_ssam.compare import Table


def coefficient_table(result: dict[str, Any]) -> Table:
    header, columns = ["", "w*"], [result["names"], _signed(result["target"])]
    last = ["largest deviation", ""]
    for depth, part in result["depths"].items():
        header += [f"SGD {depth}", f"theory {depth}", f"S-SAM {depth}"]
        columns += [_signed(part["SGD"]), _signed(part["theory"]), _signed(part["S-SAM"])]
        last += [f"{part['deviation SGD']:.3f}", "", f"{part['deviation S-SAM']:.3f}"]
    rows = [list(row) for row in zip(*columns, strict=True)]
    thresholds = " and ".join(
        f"{part['threshold']:.3f} (depth {depth})" for depth, part in result["depths"].items()
    )
    return Table(
        f"Diabetes, whitened: coefficients of diagonal networks of depth {' and '.join(result['depths'])}",
        header,
        [*rows, last],
        f"noise_std {result['noise_std']:g}. In theory coefficients with |w*| below {thresholds} become 0. "
        f"Means over {_starts(result)}; last row: the largest deviation of any one run, of SGD from w*, of "
        "S-SAM from theory.",
    )


def _starts(result: dict[str, Any]) -> str:
    first = next(iter(result["depths"].values()))
    n = sum(curve["method"] == "S-SAM" for curve in first["curves"])
    return f"{n} starts" if n > 1 else "1 start"


def _signed(values: list[float]) -> list[str]:
    return [f"{value + 0.0:+.3f}" if round(value, 3) else "0" for value in values]


def balance_table(result: dict[str, Any]) -> Table:
    rows = []
    for depth, part in result["depths"].items():
        left = {(c["method"], c["start"]): c["gap"][-1] / c["gap"][0] for c in part["curves"]}
        for curve in part["curves"]:
            if curve["method"] == "S-SAM":
                rates = [*curve["rates"], part["rate bound"]]
                gaps = [left[method, curve["start"]] for method in ("S-SAM", "SGD")]
                rows.append(
                    [
                        f"depth {depth}, start {curve['start']:g}",
                        *(f"{rate:.3f}" for rate in rates),
                        *(f"{100 * gap:.1f}" for gap in gaps),
                    ]
                )
    return Table(
        "Diabetes: how fast S-SAM balances the layers",
        ["", "rate, S-SAM", "rate, theory", "lower bound", "gap left %, S-SAM", "gap left %, SGD"],
        rows,
        "Gap: mean over coordinates of w_1^2 - w_L^2. Rate: of its exponential decay, in time (sum "
        "of learning rates), down to 10%. Theory: 4 eta^2 A_1L along the expected path; "
        "for depth 2 that is the bound.",
    )


def image_table(result: dict[str, Any]) -> Table:
    methods, rows = result["methods"], []
    reference = [run["test accuracy"] for run in methods["SGD"]["runs"]]
    for method in METHODS:
        runs = methods[method]["runs"]
        shown = ("test accuracy", "seconds", "sharpness", "wrong labels learnt")
        values = {name: [run[name] for run in runs] for name in shown}
        versus = [a - b for a, b in zip(values["test accuracy"], reference, strict=True)]
        rows.append(
            [
                method,
                _interval(values["test accuracy"], 2),
                _interval(versus, 2, sign=True) if method != "SGD" else "",
                _interval(values["seconds"], 2),
                _interval(values["sharpness"], 4),
                _interval(values["wrong labels learnt"], 1),
                _options(method, methods[method]["chosen"]),
            ]
        )
    s = result["settings"]
    return Table(
        f"{result['data']}, {s['train']:,} training images, {100 * s['wrong_labels']:g}% of the labels wrong",
        ["", "test accuracy %", "minus SGD", "CPU seconds", "sharpness", "wrong learnt %", "settings chosen"],
        rows,
        f"Mean and 95% interval over {s['seeds']} seeds (minus SGD: of the paired differences), "
        f"{s['epochs']} epochs. Settings: best of {len(methods['SGD']['grid'])} for each method on "
        f"{s['validation']:,} validation images with correct labels. CPU seconds: of the training loop, one "
        "core. Sharpness: E L(w + xi) - L(w) of the training loss at standard deviation "
        f"{s['sharpness_std']:g}. Wrong learnt: share of the wrong labels that the network gives.",
    )


def grid_table(result: dict[str, Any]) -> Table:
    rows = []
    for method in METHODS:
        part = result["methods"][method]
        for options, score in part["grid"]:
            mark = " (chosen)" if options == part["chosen"] else ""
            rows.append([method, _options(method, options), f"{score:.2f}{mark}"])
    return Table("Tuning: validation accuracy % of one run each", ["method", "settings", "accuracy"], rows)


def _options(method: str, options: dict[str, float]) -> str:
    return f"lr {options['lr']:g}, {KNOBS[method]} {options[KNOBS[method]]:g}"


def _interval(values: list[float], digits: int, sign: bool = False) -> str:
    mean, half = interval(values)
    text = f"{mean:+.{digits}f}" if sign else f"{mean:.{digits}f}"
    return f"{text} ± {half:.{digits}f}" if half < float("inf") else text
