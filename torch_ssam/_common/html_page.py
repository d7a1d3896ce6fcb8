"""Report pages and tables: one HTML file with its images inside, the same table in a terminal and in Markdown.

No scripts and no outside files, so that a page can be mailed and read anywhere. Used by compare, robustness,
the experiments and the demo. Tests: tests/python/test_experiments.py, test_compare.py, test_demo.py, test_robustness_report.py.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch_ssam._common.extras import need

STYLE = """
:root { --ink: #1d2329; --soft: #5b6670; --line: #dfe4e8; --good: #00694d; --bad: #a63d00; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: var(--ink); font: 16px/1.55 Georgia, 'Times New Roman', serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 0 0 .75rem; }
header p, footer { color: var(--soft); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.5rem 1.75rem;
  margin: 1.75rem 0; }
dl { display: grid; grid-template-columns: 6.5rem 1fr; gap: .35rem 1rem; margin: 0 0 1rem; }
dt { color: var(--soft); font: 600 .8rem/1.9 system-ui, sans-serif; text-transform: uppercase;
  letter-spacing: .04em; }
dd { margin: 0; white-space: pre-line; }
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


def png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def image(picture: bytes, alt: str) -> str:
    """An img element with the PNG in it."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(picture).decode("ascii")}">'


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways where it is too wide."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def page(title: str, header: str, body: str, footer: str) -> str:
    """The whole page; header, body and footer are HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>
<header><h1>{html.escape(title)}</h1>
{header}</header>
{body}
<footer>{footer}</footer>
</main></body></html>
"""


@dataclass(frozen=True)
class Table:
    """A table of text, to be shown in a terminal, in Markdown and in HTML; the first column is to the left.

    A column whose cells are all empty is left out of what is shown.

    >>> print(Table("title", ["", "b"], [["1", "2"]], "note").markdown())
    **title**
    <BLANKLINE>
    |  | b |
    |---|---:|
    | 1 | 2 |
    <BLANKLINE>
    note
    <BLANKLINE>
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""

    @property
    def has_data(self) -> bool:
        """Whether a column beside the first has something in it."""
        return len(self._shown()[0]) > 1

    def _shown(self) -> list[list[str]]:
        """Header and rows, without the columns that have no data."""
        kept = [i for i in range(len(self.header)) if i == 0 or any(row[i] for row in self.rows)]
        return [[line[i] for i in kept] for line in (self.header, *self.rows)]

    def show(self, console: Any) -> None:
        """Prints it to a rich console, folding what does not fit: nothing is cut off."""
        table = need("rich.table", "compare", "a table in the terminal").Table(
            title=self.title, title_justify="left", title_style="bold"
        )
        header, *rows = self._shown()
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        if self.note:
            console.print(self.note + "\n", highlight=False)

    def text(self) -> str:
        """As plain text, the first column to the left, the others to the right."""
        lines = self._shown()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        shown = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *shown, *([self.note] if self.note else [])])

    def markdown(self) -> str:
        """As a Markdown table."""
        header, *rows = self._shown()
        lines = [f"**{self.title}**", "", "| " + " | ".join(header) + " |"]
        lines.append("|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([*lines, "", self.note, ""] if self.note else [*lines, ""])

    def html(self) -> str:
        """As HTML: heading, table, note."""
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        header, *rows = self._shown()
        return f"<h3>{html.escape(self.title)}</h3>{html_table(header, rows)}{note}"
