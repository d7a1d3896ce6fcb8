"""An honest comparison of SGD, SAM, S-SAM and AdamW: `python -m torch_ssam.compare`.

What it has::

    compare             tunes over grids of one size, then runs seeds on the test split; resumes
    Setting, SETTINGS   data, model, budget, grids and seeds; those that have names
    Method, METHODS     what is compared
    Data                what a function of the user's that makes data returns
    Comparison          what a setting's runs say: means, intervals, paired differences
    write_report        report.html, self-contained, its tables as report.md, and results.csv
    SAM                 the reference implementation that is compared with

It needs the extra `compare` (matplotlib, rich, scikit-learn) for reports, bars and scikit-learn's data. docs/compare.md is
the guide. Tests: tests/python/test_compare.py.
"""

from __future__ import annotations

# Scripts with studies of their own (examples/python) are made of these.
from torch_ssam._common.html_page import Table
from torch_ssam._common.images import DataError, Images, load_idx_folder, load_images, read_idx
from torch_ssam._common.progress import rich_bar
from torch_ssam._common.workers import Workers, cores

from ._compare import STAGES, Comparison, compare
from ._data import Data, wrong_labels
from ._method import Method
from ._methods import DEFAULT_METHODS, METHODS
from ._models import plain_cnn
from ._plots import deployment_figure
from ._report import write_report
from ._sam import SAM
from ._settings import SETTINGS, Setting
from ._statistics import Estimate, calibration_error, estimate, paired
from ._tables import deployment_table

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "SAM",
    "SETTINGS",
    "STAGES",
    "Comparison",
    "Data",
    "DataError",
    "Estimate",
    "Images",
    "Method",
    "Setting",
    "Table",
    "Workers",
    "calibration_error",
    "compare",
    "cores",
    "deployment_figure",
    "deployment_table",
    "estimate",
    "load_idx_folder",
    "load_images",
    "paired",
    "plain_cnn",
    "read_idx",
    "rich_bar",
    "write_report",
    "wrong_labels",
]


def __dir__() -> list[str]:
    return __all__
