"""The report page: every experiment's claim, prediction, measurement, figure and verdict in one HTML file,
images inside.

No scripts and no outside files, so it can be mailed and read anywhere. Tests:
tests/python/test_experiments.py.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path

from ._common import Result, show

_STYLE = """
:root { --ink: #1d2329; --soft: #5b6670; --line: #dfe4e8; --good: #00694d; --bad: #a63d00; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: var(--ink); font: 16px/1.55 Georgia, 'Times New Roman', serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 0 0 .75rem; }
header p, footer { color: var(--soft); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.5rem
1.75rem;
  margin: 1.75rem 0; }
dl { display: grid; grid-template-columns: 6.5rem 1fr; gap: .35rem 1rem; margin: 0 0 1rem; }
dt { color: var(--soft); font: 600 .8rem/1.9 system-ui, sans-serif; text-transform: uppercase; letter-
spacing: .04em; } dd { margin: 0; white-space: pre-line; }
img { display: block; max-width: 100%; height: auto; margin: 1rem auto; }
table { border-collapse: collapse; font: .78rem/1.5 ui-monospace, Consolas, monospace; width: 100%; }
th, td { text-align: right; padding: .2rem .45rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); white-space: normal; vertical-align: bottom; }
.wide { overflow-x: auto; }
.badge { font: 600 .78rem/1 system-ui, sans-serif; padding: .3rem .6rem; border-radius: 999px; color: #fff;
  vertical-align: middle; margin-right: .6rem; white-space: nowrap; }
.yes { background: var(--good); } .no { background: var(--bad); } .part { background: #7a5c00; }
.note { color: var(--soft); font-size: .92rem; margin: .4rem 0; }
nav { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.75rem; }
nav li { margin: .35rem 0; } nav a { color: inherit; }
details summary { cursor: pointer; color: var(--soft); font: .85rem system-ui, sans-serif; }
@media print { section { break-inside: avoid; } details > * { display: block; } }
"""


def _badge(result: Result) -> str:
    kind = "yes" if result.confirmed else "part" if result.partly else "no"
    return f'<span class="badge {kind}">{result.mark()}</span>'


def _table(result: Result) -> str:
    columns = result.columns()
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(show(row[column]))}</td>" for column in columns) + "</tr>"
        for row in result.rows
    )
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    rows = len(result.rows)
    return table if rows <= 12 else f"<details><summary>Table of {rows} rows</summary>{table}</details>"


def _section(name: str, number: int, result: Result) -> str:
    image = base64.b64encode(result.png()).decode("ascii")
    terms = (("Claim", result.claim), ("Theory", result.prediction), ("Measured", result.measured))
    entries = "".join(f"<dt>{term}</dt><dd>{html.escape(text)}</dd>" for term, text in terms)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in result.notes)
    return (
        f'<section id="{name}"><h2>{number}. {html.escape(result.title)}</h2>'
        f"<p>{_badge(result)}{html.escape(result.verdict)}</p>"
        f'<img alt="{html.escape(result.title)}" src="data:image/png;base64,{image}">'
        f"<dl>{entries}</dl>{_table(result)}{notes}</section>"
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
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>S-SAM on diagonal linear networks, computed</title><style>{_STYLE}</style></head><body><main>
<header><h1>S-SAM on diagonal linear networks, computed</h1>
<p>The claims of Clara, Langer and Schmidt-Hieber, &ldquo;Training Diagonal Linear Networks with Stochastic
Sharpness-Aware Minimization&rdquo; (arXiv 2503.11891), and its open questions, each beside its
theory. Every verdict is computed from the numbers shown.
Errors are 95% intervals over independent replicates, or groups of them, of what is random in a run;
they do not cover the bias of a constant step, which the notes name.</p></header>
<nav><ol>{items}</ol></nav>{sections}
<footer>{scale}Seed {seed}. Made by torch_ssam.experiments in {seconds:.0f} s.</footer>
</main></body></html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
