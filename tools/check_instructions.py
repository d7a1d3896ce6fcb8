"""Counts the instructions of the inner loops under callgrind and compares them with tests/data/instruction_counts.json.

A guard against slower code that, unlike a time, is the same on every machine with the same compiler. `make test`
runs it where valgrind and a record for the compiler are there, and says so where they are not.

    python tools/check_instructions.py PROGRAM [--record]

PROGRAM is count_instructions from the CMake build; --record writes what was counted into the table.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).resolve().parent.parent / "tests" / "data" / "instruction_counts.json"
ELEMENTS = 1 << 16
TOLERANCE = 0.03
KERNELS = (
    "perturb gaussian",
    "perturb rademacher",
    "regenerate gaussian",
    "update",
    "update_and_perturb gaussian",
    "update_and_perturb rademacher",
    "diagonal",
)


def count(program: str, variant: str, kernel: str) -> float:
    """Instructions an element."""
    command = [
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        "--toggle-collect=torch_ssam_counted",
        program,
        variant,
        *kernel.split(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Collected\s*:\s*(\d+)", result.stderr)
    if result.returncode != 0 or found is None or int(found.group(1)) < ELEMENTS // 16:
        sys.exit(f"{' '.join(command)} counted nothing:\n{result.stderr}")
    return int(found.group(1)) / ELEMENTS


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("program", help="count_instructions, of the C++ tests")
    parser.add_argument("--record", action="store_true", help="write the table anew")
    args = parser.parse_args()
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    compiler = subprocess.run(
        [args.program, "compiler"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if shutil.which("valgrind") is None:
        print("NOT CHECKED here: instruction counts need valgrind")
        return
    if compiler not in table and not args.record:
        print(
            f"NOT CHECKED here: no instruction counts on record for {compiler}; run with --record to add them"
        )
        return
    counted = {v: {k: round(count(args.program, v, k), 3) for k in KERNELS} for v in ("avx2", "plain")}
    if args.record:
        table[compiler] = counted
        TABLE.write_text(json.dumps(table, indent=2) + "\n")
    failed = False
    for variant, kernels in counted.items():
        for kernel, now in kernels.items():
            before = table[compiler][variant][kernel]
            change = now / before - 1
            note = ""
            if change > TOLERANCE:
                failed, note = True, f"  MORE than the {before} on record"
            elif change < -TOLERANCE:
                note = f"  fewer than the {before} on record: --record"
            print(f"{variant:6} {kernel:30} {now:9.3f} instructions an element{note}")
    if failed:
        sys.exit("Slower code: find out why, or, if it is worth it, --record and say so in the commit.")


if __name__ == "__main__":
    main()
