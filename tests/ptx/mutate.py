"""How many exchanged instructions the walks notice: one mutant a kernel (mutants.py), each put in force alone.

    mutate.py PROGRAM --tests TESTS.LOG --sources TRANSLATED.cpp... [--jobs N] [--out FILE]

PROGRAM is ptx_walks over kernels translated with --mutants; TESTS.LOG says which tests launch which kernel
(TORCH_SSAM_PTX_TESTS). Of a kernel only these run, the shortest first, until one fails; then, of a mutant that is still
there, the random calls, more of them and over special values. A mutant that ends the process or does not end is noticed
too. Survivors are printed with their instruction; docs/cuda_on_cpu.md explains them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MUTANT = re.compile(r'^Kernel kernel\{"(\w+)",.*&mutated, "([^"]*)"\};$', re.M)
SECONDS = 60  # a mutant of a loop's end may not end
MORE = (  # settings for the random calls of what survived the walks
    {"TORCH_SSAM_PTX_CALLS": "40", "TORCH_SSAM_PTX_SEED": "2"},
    {"TORCH_SSAM_PTX_CALLS": "40", "TORCH_SSAM_PTX_VALUES": "special"},
)


def tests_of(log: Path) -> dict[str, list[str]]:
    """The tests of each kernel, the shortest first."""
    times: dict[str, dict[str, int]] = defaultdict(dict)
    for line in log.read_text().splitlines():
        test, kernel, milliseconds = line.split()
        times[kernel][test] = int(milliseconds)
    return {kernel: sorted(of, key=lambda test: of[test]) for kernel, of in times.items()}


def outcome(program: Path, kernel: str, tests: list[str]) -> str:
    runs: list[tuple[str, dict[str, str]]] = [(test, {}) for test in tests]
    runs += [(test, more) for more in MORE for test in tests if test.startswith("Random")]
    for test, settings in runs:
        command = [str(program.resolve()), f"--gtest_filter={test}", "--gtest_brief=1"]
        environment = {**os.environ, **settings, "TORCH_SSAM_PTX_MUTANT": kernel}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return "did not end"
        if done.returncode != 0:
            return "wrong bits" if done.returncode > 0 else "ended the process"
    return "survived"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--tests", type=Path, required=True)
    parser.add_argument("--sources", type=Path, nargs="+", required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="a line for each mutant")
    args = parser.parse_args()
    mutants = dict(pair for source in args.sources for pair in MUTANT.findall(source.read_text()))
    tests = tests_of(args.tests)
    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = dict(
            zip(mutants, pool.map(lambda k: outcome(args.program, k, tests.get(k, [])), mutants), strict=True)
        )
    lines = [f"{outcomes[kernel]}: {text}: {kernel}" for kernel, text in mutants.items()]
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(line for line in lines if line.startswith("survived")))
    counts = Counter(outcomes.values())
    print(f"{len(mutants) - counts['survived']} of {len(mutants)} mutants noticed: {dict(counts)}")
    if not mutants:
        raise SystemExit("no mutants: translate with --mutants and --ran, after the walks have run")


if __name__ == "__main__":
    main()
