"""Writes docs/cuda_kernels.md from what tools/check_ptx.py finds: registers, bytes moved and instructions an element against
the memory bound, of every kernel and architecture.   `make ptx` calls it.   kernels_page.py [--jobs N]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess

from check_ptx import (
    ARCHITECTURES,
    LOOPS,
    ROOT,
    SOURCES,
    Kernel,
    compiled,
    expected,
    is_aligned,
    template,
    tool,
)

# Multiprocessors, clock in GHz and bandwidth in TB/s, by the vendor's data sheets: leads, not measurements.
GPUS = {80: ("A100 80GB", 108, 1.41, 2.04), 90: ("H200", 132, 1.98, 4.8), 100: ("B200", 148, 1.85, 8.0)}
# What the half-rate integer pipe executes; the rest goes to pipes that keep up with the issue rate.
INTEGER = ("IADD", "LOP3", "SHF", "LEA", "ISETP", "SEL", "PRMT", "VIADD", "IABS", "POPC", "FLO", "IMNMX")

Kernels = dict[int, dict[str, Kernel]]  # by architecture and name


def table(kernels: Kernels) -> list[str]:
    """Rows for the list kernels of the aligned path, where a thread's elements are known."""
    lines = [
        "| kernel | registers sm_80 / 90 / 100 | bytes an element | instructions an element, sm_90 "
        "| issue slots A100 / H200 / B200 | integer pipe |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(kernels[ARCHITECTURES[0]]):
        if not is_aligned(name) or template(name)[0] in LOOPS:
            continue
        wanted = expected(name)
        moved = sum(width * n for width, n in (wanted.loads + wanted.stores).items()) / wanted.elements
        issue, integer = [], []
        for arch, (_, processors, clock, bandwidth) in GPUS.items():
            ops = kernels[arch][name].instructions
            rate = bandwidth * 1000 / moved / wanted.elements  # threads a nanosecond at full bandwidth
            issue.append(ops.total() * rate / (processors * 128 * clock))
            integers = sum(n for op, n in ops.items() if op.startswith(INTEGER))
            integer.append(integers * rate / (processors * 64 * clock))
        cells = [
            f"`{name}`",
            " / ".join(str(kernels[a][name].registers) for a in ARCHITECTURES),
            f"{moved:g}",
            f"{kernels[90][name].instructions.total() / wanted.elements:.0f}",
            " / ".join(f"{100 * x:.0f}%" for x in issue),
            " / ".join(f"{100 * x:.0f}%" for x in integer),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def kind_of(name: str) -> str:
    """A kernel's name without its dtypes, the kind of an update and how many neighbours a thread has."""
    name = re.sub(r"\b(?:double|float|b?float16_t|unsigned (?:short|int|long))\b", "T", name)
    name = re.sub(r"\(\w+::Kind\)\d", "K", name)
    return re.sub(r", \d+(?=, RowScales>$|>$)", ", C", name)


def span(numbers: list[int]) -> str:
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def kinds_table(kernels: Kernels) -> list[str]:
    """A row for each kind of kernel and path: how many there are, and the span of what they use."""
    lines = [
        "| kernels | neighbours a thread | how many | registers sm_80 / 90 / 100 | instructions, sm_90 "
        "| bytes spilled | bytes an access, aligned path |",
        "|---|---|---:|---|---|---:|---|",
    ]
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in sorted(kernels[ARCHITECTURES[0]]):
        groups.setdefault((kind_of(name), is_aligned(name)), []).append(name)
    for (kind, aligned), names in sorted(groups.items()):
        of = {a: [kernels[a][name] for name in names] for a in ARCHITECTURES}
        counts = sorted({int(x) for n in names for x in template(n)[1] if x.isdigit()})
        widths = {w for k in of[90] for (_, w, vector) in k.accesses if vector}
        cells = [
            f"`{kind}`",
            ", ".join(map(str, counts)) or "-",
            str(len(names)),
            " / ".join(span([k.registers for k in of[a]]) for a in ARCHITECTURES),
            span([k.instructions.total() for k in of[90]]),
            str(max(k.spills + k.stack for a in ARCHITECTURES for k in of[a])),
            " and ".join(map(str, sorted(widths))) if aligned else "any alignment",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


PAGE = """# The CUDA kernels as compiled

Written by `make ptx` (tools/check_ptx.py) from the compiler's report, the PTX and the machine code. **No GPU
ran anything here**: the bounds are computed. What has run where is in cuda.md.

{total} kernels of {sources} sources, each for sm_80, sm_90 and sm_100 ({tools}). At most {most} registers,
no spills, no stack frames, no scalar access to a tensor on the aligned path.

## All kernels, by kind

`T` stands for a dtype, `C` for how many neighbours a thread owns and moves at a time, `K` for the kinds of an update rule.
Flags: `PerturbOp<clean, params, save the clean weights, noise by element>`, `UpdateOp<kind, clean, params, noise in the same
pass, noise by element>`; `RowScales`: noise by rows. One neighbour a thread: the path for any alignment and any stride.

{kinds}

## Issue slots against bytes

Read this table so: a kernel reaches the memory's bandwidth where the last two columns stay below 100%. They
say what part of the issue slots, and of the integer pipe (half the rate), the kernel's instructions take in
the time that its bytes take at full bandwidth, on {gpus}.
Instructions are all that the kernel holds, the branches that a run does not take among them (the other
distribution, the slow path of the square root; with RowScales, rows that end among a thread's neighbours; with
AnyKind, all kinds of the rule), so that the true figures are lower. `ListBody<Op, C>`: C neighbours a
thread and access. The kernels of the other path (any alignment, any stride) are right, not fast.

{table}
"""


def page(kernels: Kernels, tools: str) -> str:
    return PAGE.format(
        total=len(kernels[ARCHITECTURES[0]]),
        sources=len(SOURCES),
        tools=tools,
        kinds="\n".join(kinds_table(kernels)),
        most=max(k.registers for of_arch in kernels.values() for k in of_arch.values()),
        gpus=", ".join(f"{g} ({n} multiprocessors at {c} GHz, {b} TB/s)" for g, n, c, b in GPUS.values()),
        table="\n".join(table(kernels)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    kernels = compiled(SOURCES, ARCHITECTURES, parser.parse_args().jobs)
    if not any(k.instructions for k in kernels[ARCHITECTURES[0]].values()):
        raise SystemExit("docs/cuda_kernels.md kept as it is: it is made from the machine code")
    version = subprocess.run(
        [tool("nvcc", "CUDACXX"), "--version"], capture_output=True, text=True, check=True
    )
    release = re.findall(r"V([\d.]+)", version.stdout)
    (ROOT / "docs" / "cuda_kernels.md").write_text(page(kernels, f"nvcc {release[0]}"))


if __name__ == "__main__":
    main()
