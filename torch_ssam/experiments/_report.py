"""The report page: every experiment's claim, prediction, measurement, figure and verdict in one HTML file,
images inside.

No scripts and no outside files, so it can be mailed and read anywhere. Tests:
tests/python/test_experiments.py.
"""

from __future__ import annotations

import html
from pathlib import Path

from torch_ssam._common.html_page import html_table, image, page

from ._common import Result, show


def _badge(result: Result) -> str:
    kind = "yes" if result.confirmed else "part" if result.partly else "no"
    return f'<span class="badge {kind}">{result.mark()}</span>'


def _table(result: Result) -> str:
    columns = result.columns()
    rows = [[show(row[column]) for column in columns] for row in result.rows]
    table = html_table(columns, rows)
    if len(rows) <= 12:
        return table
    return f"<details><summary>Table of {len(rows)} rows</summary>{table}</details>"


def _section(name: str, number: int, result: Result) -> str:
    terms = (("Claim", result.claim), ("Theory", result.prediction), ("Measured", result.measured))
    entries = "".join(f"<dt>{term}</dt><dd>{html.escape(text)}</dd>" for term, text in terms)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in result.notes)
    return (
        f'<section id="{name}"><h2>{number}. {html.escape(result.title)}</h2>'
        f"<p>{_badge(result)}{html.escape(result.verdict)}</p>"
        f"{image(result.png(), result.title)}<dl>{entries}</dl>{_table(result)}{notes}</section>"
    )


def write_report(results: dict[str, Result], path: Path, *, quick: bool, seed: int) -> None:
    """Writes the page; `results` are shown in their order."""
    items = "".join(
        f'<li>{_badge(result)}<a href="#{name}">{html.escape(result.title)}</a></li>'
        for name, result in results.items()
    )
    sections = "".join(_section(name, i, result) for i, (name, result) in enumerate(results.items(), 1))
    seconds = sum(result.seconds for result in results.values())
    scale = "Quick settings: fewer replicates and steps. " if quick else ""
    header = """<p>The claims of Clara, Langer and Schmidt-Hieber, &ldquo;Training Diagonal Linear Networks with Stochastic
Sharpness-Aware Minimization&rdquo; (arXiv 2503.11891), and its open questions, each beside its
theory. Every verdict is computed from the numbers shown.
Errors are 95% intervals over independent replicates, or groups of them, of what is random in a run;
they do not cover the bias of a constant step, which the notes name.</p>"""
    footer = f"{scale}Seed {seed}. Made by torch_ssam.experiments in {seconds:.0f} s."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        page(
            "S-SAM on diagonal linear networks, computed",
            header,
            f"<nav><ol>{items}</ol></nav>{sections}",
            footer,
        ),
        encoding="utf-8",
    )
