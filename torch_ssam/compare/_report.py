"""report.html, one self-contained page; its tables as report.md; results.csv, a row a run. Tests: test_compare.py."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch_ssam._common.files import replace_file
from torch_ssam._common.html_page import Table, image, page, png

from ._compare import Comparison
from ._plots import all_plots
from ._tables import all_tables, options_text, overview_table
from ._verdict import verdict

_PROTOCOL = """<p>Each method is tuned over a grid of the same size by its score on a validation split, in a run with a seed
of its own; then the chosen options are run with fresh seeds and looked at on the test split. A seed decides first weights,
order of batches and wrong labels, the same for all methods. SAM's two gradients a step count: at an equal budget it has half
the epochs. Learning rates fall by a cosine to zero; momentum is 0.9; BatchNorm's statistics are gathered anew at the clean
weights for every method.</p>"""


def _section(comparison: Comparison, answers: list[str], tables: list[Table]) -> str:
    setting, data = comparison.setting, comparison.data
    sizes = [len(pair[1]) for pair in (data.train, data.validation, data.test)]
    facts = {
        "data": "{}, {} to train on, {} to validate, {} to test".format(data.name, *sizes),
        "model": setting.model_name,
        "wrong labels": f"{100 * setting.wrong_labels:g}%",
        "budget": f"{setting.epochs} epochs of SGD, batch {setting.batch}",
        "grid": f"{len(setting.grid(comparison.method('sgd')))} points a method",
        "note": data.note,
    }
    listed = "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items() if v)
    answered = "".join(f"<p>{html.escape(line)}</p>" for line in answers)
    pictures = ""
    for name, figure in all_plots(comparison).items():
        picture = png(figure)
        pictures += image(picture, f"{comparison.name}: {name}")
        comparison.store.folder.mkdir(parents=True, exist_ok=True)
        replace_file(comparison.store.folder / f"{name}.png", picture)
    sources = ""
    for method in comparison.methods:
        words = [method.source, options_text(method.options)]
        text = f"{method.title} ({method.name}): {', '.join(filter(None, words)) or method.optimizer}"
        sources += f"<li>{html.escape(text)}</li>"
    return (
        f'<section id="{comparison.name}"><h2>{comparison.name}</h2><dl>{listed}</dl>{answered}{pictures}'
        + "".join(table.html() for table in tables)
        + f"<details><summary>The methods</summary><ul>{sources}</ul></details></section>"
    )


def write_report(comparisons: Sequence[Comparison], out: str | Path) -> Path:
    """Writes report.html, with plots inside, report.md, its tables, and results.csv; the path of the first.

    The plots are also PNG files in the folder of each setting.

    Each is replaced in one step. Plots, tables and columns of what is not run yet are left out.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    listed = list(comparisons)
    items = "".join(f'<li><a href="#{c.name}">{c.name}</a></li>' for c in listed)
    software = sorted({_software(path) for c in listed for path in c.store.folder.glob("*.json")})
    overview = overview_table(listed)
    found = [(comparison, verdict(comparison), all_tables(comparison)) for comparison in listed]
    body = f"<section>{overview.html()}<ol>{items}</ol></section>" + "".join(
        _section(*each) for each in found
    )
    made_by = f"Records made by: {html.escape('; '.join(software)) or 'none yet'}."
    replace_file(folder / "results.csv", _csv([row for comparison in listed for row in comparison.rows()]))
    words = [overview.markdown()]
    for comparison, answers, tables in found:
        words += [f"## {comparison.name}\n", *(f"{line}\n" for line in answers)]
        words += [table.markdown() for table in tables]
    replace_file(folder / "report.md", "\n".join(words))
    replace_file(folder / "report.html", page("SGD, SAM, S-SAM and AdamW compared", _PROTOCOL, body, made_by))
    return folder / "report.html"


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    filled = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    writer = csv.DictWriter(text, fieldnames=list(filled), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _software(path: Path) -> str:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return ", ".join(f"{name} {version}" for name, version in record["software"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"unknown ({path.name} is damaged)"
