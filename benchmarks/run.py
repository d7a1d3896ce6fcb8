"""Runs the benchmarks, prints their tables and writes docs/benchmarks.md. `make bench` calls it.

python benchmarks/run.py [--rounds N] [--only step,rows,adamw,diagonal,training] [--cases 32M]
    [--capability avx2] [--no-write]

--capability gives both sides one instruction set, ours by TORCH_SSAM_CPU_CAPABILITY and PyTorch's by ATEN_CPU_CAPABILITY: AVX2
code on a processor with AVX-512, say, which is not a processor with AVX2 alone.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import adamw, diagonal, harness, rows, step, training  # noqa: E402


def section(name: str, rounds: int, capability: str, cases: list[str]) -> list[str]:
    """One part of the page, measured now."""
    if name == "step":
        table = step.table(cases, rounds)
        return [f"## The optimizer step ({capability} kernels)", "", *table, "", step.memory_beyond_sgd()]
    if name == "adamw":
        return [
            f"## The step of SSAMAdamW ({capability} kernels)",
            "",
            *adamw.table(cases, rounds),
        ]
    if name == "rows":
        return [
            f"## Clipped filters and noise by their range ({capability} kernels)",
            "",
            *rows.table(rounds),
        ]
    if name == "diagonal":
        return ["## DiagonalLinear, forward and backward", "", *diagonal.table(rounds)]
    if name == "training":
        return ["## Whole training steps", "", *training.table(rounds)]
    raise SystemExit(f"unknown benchmark {name!r}; expected step, rows, adamw, diagonal or training")


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="measurements, each of all in turns")
    parser.add_argument(
        "--only", default="step,rows,adamw,diagonal,training", help="parts, with commas between them"
    )
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md as it is")
    parser.add_argument("--cases", default=",".join(step.CASES), help="sizes of step and adamw")
    parser.add_argument(
        "--capability",
        choices=("avx2", "avx512"),
        help="instruction set of both sides; the page stays as it is",
    )
    args = parser.parse_args()
    if args.capability and os.environ.get("ATEN_CPU_CAPABILITY") != args.capability:
        os.environ |= {"ATEN_CPU_CAPABILITY": args.capability, "TORCH_SSAM_CPU_CAPABILITY": args.capability}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    torch.set_num_threads(args.threads)
    capability = torch.ops.torch_ssam.cpu_capability()
    body = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {datetime.date.today()}: {harness.machine()}.",
        "Every figure is the median of the ratios of alternating rounds in one run; fp32, momentum 0.9.",
        "",
    ]
    for name in args.only.split(","):
        lines = section(name, args.rounds, capability, args.cases.split(","))
        body += [*lines, ""]
        print("\n".join(lines), flush=True)
    if not args.no_write and not args.capability:
        (ROOT / "docs" / "benchmarks.md").write_text("\n".join(body))


if __name__ == "__main__":
    main()
