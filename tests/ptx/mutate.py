"""How many exchanged instructions the walks notice: one mutant a kernel (mutants.py), each put in force alone.

    mutate.py PROGRAM --tests TESTS.LOG --sources TRANSLATED.cpp... [--jobs N] [--kernels REGEX] [--out FILE]

PROGRAM is ptx_walks over kernels translated with --mutants; TESTS.LOG says which tests launch which kernel
(TORCH_SSAM_PTX_TESTS of ptx_walks). Each mutant gets the tests of its kernel, the shortest first. Why a survivor cannot be
noticed is in data/survivors.tsv: a pattern of kernels, one of instructions as mutants.described writes them, and the reason.
Those without a reason get the random calls once more with other seeds and special values; a survivor of that is an error.
Tests: tests/python/test_ptx_translator.py.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kernels_ran import readable

MUTANT = re.compile(r'^Kernel kernel\{"(\w+)",.*&mutated, "([^"]*)"\};$', re.M)
REASONS = Path(__file__).parent / "data" / "survivors.tsv"
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


def outcome(program: Path, kernel: str, tests: list[str], more_calls: bool) -> str:
    runs: list[tuple[str, dict[str, str]]] = [(test, {}) for test in tests]
    if more_calls:
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


class Reason(NamedTuple):
    kernels: re.Pattern[str]
    instructions: re.Pattern[str]
    why: str


def reasons(table: Path) -> list[Reason]:
    """Of data/survivors.tsv; a line that is none, or gives none, is an error."""
    out = []
    for number, line in enumerate(table.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        parts = line.split("\t")
        if len(parts) != 3 or not all(part.strip() for part in parts):
            raise SystemExit(
                f"{table}:{number}: expected kernels, instructions and the reason between tabs: {line}"
            )
        try:
            out.append(Reason(re.compile(parts[0]), re.compile(parts[1]), parts[2]))
        except re.error as error:
            raise SystemExit(f"{table}:{number}: {error}: {line}") from error
    return out


def why_not_noticed(known: list[Reason], kernel: str, mutation: str) -> str | None:
    """`kernel` as kernels_ran.readable writes it."""
    return next((r.why for r in known if r.kernels.search(kernel) and r.instructions.search(mutation)), None)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--tests", type=Path, required=True)
    parser.add_argument("--sources", type=Path, nargs="+", required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--kernels", type=re.compile, default=re.compile(""), help="only those of such a name"
    )
    parser.add_argument("--reasons", type=Path, default=REASONS)
    parser.add_argument("--out", type=Path, help="a line for each mutant, as its outcome is known")
    args = parser.parse_args()
    known = reasons(args.reasons)
    found = dict(pair for source in args.sources for pair in MUTANT.findall(source.read_text()))
    names = dict(zip(found, readable(list(found)), strict=True))
    mutants = {kernel: text for kernel, text in found.items() if args.kernels.search(names[kernel])}
    if not mutants:
        raise SystemExit("no mutants: translate with --mutants and --ran, after the walks have run")
    tests = tests_of(args.tests)

    def run(kernel: str) -> str:
        unknown = why_not_noticed(known, names[kernel], mutants[kernel]) is None
        result = outcome(args.program, kernel, tests.get(kernel, []), more_calls=unknown)
        if args.out is not None:
            with args.out.open("a") as out:
                out.write(f"{result}\t{names[kernel]}\t{mutants[kernel]}\n")
        return result

    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = dict(zip(mutants, pool.map(run, mutants), strict=True))
    counts = Counter(outcomes.values())
    survivors = [kernel for kernel in mutants if outcomes[kernel] == "survived"]
    why = {kernel: why_not_noticed(known, names[kernel], mutants[kernel]) for kernel in survivors}
    for reason, count in Counter(why.values()).most_common():
        print(f"{count} survived: {reason or 'NO REASON KNOWN'}")
    print(f"{len(mutants) - counts['survived']} of {len(mutants)} mutants noticed: {dict(counts)}")
    unexplained = [f"{names[k]}: {mutants[k]}" for k in survivors if why[k] is None]
    if unexplained:
        raise SystemExit(
            f"nobody noticed these, and {args.reasons.name} has no reason; a case that does, or a reason, belongs there:\n"
            + "\n".join(unexplained)
        )


if __name__ == "__main__":
    main()
