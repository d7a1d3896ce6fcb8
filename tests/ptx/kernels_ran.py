"""Holds what ran against what there is: every kernel of the library must have run as PTX on the CPU.

    kernels_ran.py --ptx FILE... --logs FILE...

The kernels of the library are the entries in the PTX of its sources; what ran is in the launcher's logs. A kernel that no
test launched is an error. Prints the numbers of docs/cuda_on_cpu.md: kernels, launches, basic blocks. Which blocks of which
kernels no test reached is printed with --missed. Tests: tests/python/test_ptx_translator.py.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from mutants import blocks_that_ran
from translate import ENTRY


def launches_in(logs: list[Path]) -> int:
    return sum(int(line.split()[1]) for log in logs for line in log.read_text().splitlines())


def readable(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [
        name.replace("torch_ssam::", "").replace("cuda::", "").replace("math::", "").split("::Params")[0]
        for name in done.stdout.splitlines()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--ptx", type=Path, nargs="+", required=True)
    parser.add_argument("--logs", type=Path, nargs="+", required=True)
    parser.add_argument("--missed", action="store_true")
    args = parser.parse_args()
    kernels = [entry[0] for ptx in args.ptx for entry in ENTRY.findall(ptx.read_text())]
    ran = blocks_that_ran(args.logs)
    idle = [name for name in kernels if name not in ran]
    blocks, reached = sum(len(b) for b in ran.values()), sum(b.count("1") for b in ran.values())
    whole = sum("0" not in b for b in ran.values())
    print(
        f"{len(kernels)} kernels, {len(kernels) - len(idle)} run, {launches_in(args.logs)} launches; "
        f"{reached} of {blocks} basic blocks reached, all of {whole} kernels"
    )
    if args.missed:
        part = sorted((b.count("0"), name) for name, b in ran.items() if "0" in b)
        for (count, name), text in zip(part, readable([name for _, name in part]), strict=True):
            at = [i for i, bit in enumerate(ran[name]) if bit == "0"]
            print(f"{count} of {len(ran[name])} not reached: {text}: {at[:12]}")
    if idle or not kernels:
        raise SystemExit(
            "No test ran these kernels as PTX; a walk of each belongs into a file of TORCH_SSAM_PTX_WALKS "
            "(tests/ptx/ptx.cmake):\n" + "\n".join(readable(idle))
        )


if __name__ == "__main__":
    main()
