"""A page of docs from what tools/gpu_check.sh wrote so far: what ran where, the outcome of each part, and the table of speed.

gpu_page.py OUT > docs/cuda_checked.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

PARTS = {
    "describe": "the machine",
    "import": "the package and its CUDA library load",
    "build_C": "theory and simulator built for this Python",
    "bits": "tests/python/test_cuda.py: the CPU's bits, graphs, streams, AMP, sizes beyond 2^31",
    "registration": "every operator has its CUDA kernel",
    "speed": "benchmarks/cuda_step.py",
    "ddp_fsdp2": "DDP and FSDP2, ranks on one device",
    "memcheck": "compute-sanitizer: accesses",
    "racecheck": "compute-sanitizer: races in shared memory",
    "initcheck": "compute-sanitizer: reads of memory that nobody wrote",
}


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("out", type=Path, help="folder that gpu_check.sh wrote its results to")
    out = parser.parse_args().out
    print("# What ran on a GPU\n\nWritten by tools/gpu_check.sh.\n")
    described = out / "describe.log"
    if described.exists():
        print("\n".join(f"    {line}" for line in described.read_text().splitlines()) + "\n")
    print("| part | outcome | seconds | last line |\n|---|---|---:|---|")
    for line in (out / "results.tsv").read_text().splitlines():
        name, outcome, seconds, last = line.split("\t")
        print(f"| {PARTS.get(name, name)} | {outcome} | {seconds} | {last.replace('|', '/')} |")
    speed = out / "speed.log"
    if speed.exists():
        rows = [line for line in speed.read_text().splitlines() if line.startswith("|")]
        print("\n## Speed\n\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
