"""PEP 517 backend: setuptools, plus torch as a build requirement only where the environment has none.

Naming torch in pyproject.toml would make pip download a second PyTorch, often another one, for every isolated build.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import Any

try:
    from setuptools import build_meta as _backend
    from setuptools.build_meta import *  # noqa: F403
except ImportError:  # setup.py, which names everything else that is missing, cannot run without it
    raise SystemExit(
        "torch_ssam cannot be built here (setuptools missing): pip install 'setuptools>=77', or install without "
        "--no-build-isolation."
    ) from None

_Settings = dict[str, Any] | None


def _torch_requirement() -> list[str]:
    if os.environ.get("TORCH_SSAM_TORCH_DIR"):
        return []
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return [] if any((Path(f) / "torch").is_dir() for f in folders) else ["torch>=2.10"]


def get_requires_for_build_wheel(config_settings: _Settings = None) -> list[str]:
    return [*_backend.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: _Settings = None) -> list[str]:
    return [*_backend.get_requires_for_build_editable(config_settings), *_torch_requirement()]
