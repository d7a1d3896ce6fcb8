"""Translates the PTX that nvcc makes of the CUDA kernels to C++: a function a kernel, a call a thread.

    translate.py OUT.cpp IN.ptx [--mutants SEED --ran LOG...]

A kernel with bar.sync becomes a function that can be resumed, its registers in a struct, so that the launcher
(launcher.cpp) stops every thread of a block at the barrier and may take the threads between two barriers in any order.
OUT.cpp registers every kernel there; its functions have the names of the kernels, so that host code which is linked with
them launches them. With --mutants each kernel also has one of its instructions in another form (mutants.py), which the
launcher can put in force. What an instruction does is in instructions.py. Tests: tests/python/test_ptx_translator.py.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from pathlib import Path

import mutants
from instructions import BITS, C_TYPES, CLASSES, Operands, Unknown, statement

ENTRY = re.compile(
    r"\.visible \.entry (\w+)\(\n\s*\.param \.align (\d+) \.b8 (\w+)\[(\d+)\]\n\)\n(.*?)\n\{\n(.*?)\n\}\n",
    re.S,
)
THREADS = "256"  # csrc/ops/cuda/grid.h


def split(text: str) -> list[str]:
    """At commas outside of braces and brackets."""
    parts = re.split(r",(?![^{\[]*[}\]])", text)
    return [part.strip() for part in parts if part.strip()]


class Kernel:
    """One .entry: its registers, its shared memory and its code as lines of C++."""

    def __init__(self, entry: tuple[str, ...], ran: str) -> None:
        self.name, align, parameter, size, pragmas, body = entry
        self.align, self.parameter_bytes = int(align), int(size)
        if re.findall(r"\.maxntid (\d+)(?:, 1, 1)?\n", pragmas + "\n") != [THREADS]:
            raise Unknown(f"a launch of other than {THREADS} threads a block: {pragmas}")
        self.ran = ran
        self.shared_bytes = 0
        self.registers: dict[str, int] = {}
        self.lines: list[str] = []
        self.blocks = 1
        self.barriers = 0
        self.opcodes: Counter[str] = Counter()
        self.code: list[tuple[str, list[str]]] = []  # opcode and arguments, the guard the last of them
        self.candidates: list[mutants.Candidate] = []
        self.mutation = ""
        body = re.sub(r"\s+", " ", re.sub(r"//.*", "", body))
        # The upper half of a register, as nvcc 13 takes it for sm_100: with a scratch register of its own.
        body = re.sub(
            r"\{ ?\.reg \.b\d+ tmp; mov\.b(\d+) \{tmp, (%\w+)\}, (%\w+); ?\}", r"mov.b\1 {_, \2}, \3;", body
        )
        self.resumable = "bar.sync" in body
        self.operands = Operands(parameter, self.parameter_bytes, {}, "s->" if self.resumable else "")
        for part in re.split(r"(?<=;)|(?<=:)(?= )", body):
            self._add(part.strip())

    def _add(self, text: str) -> None:
        if not text or text.startswith(".pragma"):
            return
        if text.endswith(":"):
            self.lines.append(f"{text[:-1].lstrip('$')}: {self._new_block()}")
            return
        text = text.rstrip("; ")
        if match := re.fullmatch(r"\.reg \.(\w+) %(\w+)<(\d+)>", text):
            if BITS.get(CLASSES[match[2]], 1) != BITS.get(match[1], 1):
                raise Unknown(text)
            self.registers[match[2]] = int(match[3])
        elif match := re.fullmatch(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", text):
            at = -(-self.shared_bytes // int(match[1])) * int(match[1])
            self.operands.shared[match[2]] = at
            self.shared_bytes = at + int(match[3])
        else:
            self._instruction(text)

    def _new_block(self) -> str:
        self.blocks += 1
        return f"covered[{self.blocks - 1}] = 1;"

    def _instruction(self, text: str) -> None:
        guard = re.match(r"@(!?)(%p\d+) ", text)
        if guard:
            text = text[guard.end() :]
        opcode, _, rest = text.partition(" ")
        arguments = split(rest)
        self.opcodes[opcode] += 1
        self.code.append((opcode, [*arguments, guard[2]] if guard else arguments))
        condition = f"if ({guard[1]}{self.operands.name(guard[2])}) " if guard else ""
        if opcode == "bar.sync":
            if guard or arguments != ["0"]:
                raise Unknown(text)
            self.barriers += 1
            self.lines.append(f"return {self.barriers}; resume_{self.barriers}: {self._new_block()}")
            return
        line = statement(self.operands, opcode, arguments)
        if opcode.startswith("bra") and guard:
            self.lines.append(f"{condition}{line} {self._new_block()}")
            return
        mark = f"{self._new_block()} " if guard else ""
        self._offer_mutant(opcode, arguments, line)
        self.lines.append(f"{condition}{{ {mark}{line} }}" if guard else line)

    def _offer_mutant(self, opcode: str, arguments: list[str], line: str) -> None:
        if self.ran[self.blocks - 1 : self.blocks] != "1":
            return
        mutant = mutants.of(self.operands, opcode, arguments)
        if mutant is not None and mutant != line:
            self.candidates.append(mutants.Candidate(len(self.lines), line, mutant, len(self.code) - 1))

    def choose_mutant(self, seed: int) -> None:
        if not self.candidates:
            return
        # One that stays chosen when other blocks are reached too, as far as they come later.
        chosen = min(self.candidates, key=lambda c: random.Random(f"{seed} {self.name} {c.number}").random())
        both = f"if (mutated) {{ {chosen.mutant} }} else {{ {chosen.line} }}"
        self.lines[chosen.at] = self.lines[chosen.at].replace(chosen.line, both, 1)
        self.mutation = mutants.described(self.code, chosen.number)

    def cpp(self, number: int) -> str:
        groups = [(C_TYPES[CLASSES[p]], [f"{p}{i}" for i in range(n)]) for p, n in self.registers.items()]
        out = [f"namespace kernel_{number} {{", f"u8 covered[{self.blocks}];"]
        if self.mutation:
            out.append("bool mutated = false;")
        if self.resumable:
            out += ["struct State {", *(f"  {type} {', '.join(names)};" for type, names in groups), "};"]
        out.append(
            "int step(const u8* parameters, u32 thread, u32 block, u8* shared, void* state, int at, u64 junk) {"
        )
        out.append(
            "  (void)parameters, (void)thread, (void)block, (void)shared, (void)state, (void)at, (void)junk;"
        )
        if self.resumable:
            out.append("  auto* const s = static_cast<State*>(state);")
            resume = " ".join(f"case {b}: goto resume_{b};" for b in range(1, self.barriers + 1))
            out.append(f"  switch (at) {{ {resume} }}")
        else:
            # A predicate has one bit.
            out += [
                f"  {type} {', '.join(f'{n} = {junk(type, n)}' for n in names)};" for type, names in groups
            ]
        out += ["  covered[0] = 1;", *(f"  {line}" for line in self.lines), "  return kDone;", "}"]
        state = "sizeof(State)" if self.resumable else "0"
        mutation = f'&mutated, "{self.mutation}"' if self.mutation else 'nullptr, ""'
        out.append(
            f'Kernel kernel{{"{self.name}", step, {self.parameter_bytes}, {self.align}, {self.shared_bytes}, {state}, '
            f"{self.barriers > 0:d}, covered, {self.blocks}, {mutation}}};"
        )
        out.append("const Registration registration(&kernel);")
        out.append(f"}}  // namespace kernel_{number}")
        return "\n".join(out)


def junk(type: str, name: str) -> str:
    if name.startswith("p"):
        return "junk & 1"
    return {"float": "bits_as<float>((u32)junk)", "double": "bits_as<double>(junk)"}.get(
        type, f"({type})junk"
    )


def kernels_of(ptx: str, ran: dict[str, str]) -> list[Kernel]:
    entries = ENTRY.findall(ptx)
    if len(entries) != len(re.findall(r"\.entry ", ptx)):
        raise Unknown(f"{len(entries)} of {len(re.findall(r'.entry ', ptx))} kernels are of the known form")
    if ".func " in ptx or "\n.const" in ptx or ".local " in ptx:
        raise Unknown("functions that kernels call, constants or local memory")
    out = []
    for entry in entries:
        try:
            out.append(Kernel(entry, ran.get(entry[0], "")))
        except Unknown as error:
            raise Unknown(f"{entry[0]}: {error}") from error
    return out


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("ptx", type=Path)
    parser.add_argument(
        "--mutants", type=int, metavar="SEED", help="one instruction of each kernel in two forms"
    )
    parser.add_argument(
        "--ran", type=Path, nargs="+", default=[], help="logs of what ran: mutants are of that"
    )
    args = parser.parse_args()
    ran = mutants.blocks_that_ran(args.ran)
    try:
        kernels = kernels_of(args.ptx.read_text(), ran)
    except Unknown as error:
        raise SystemExit(f"tests/ptx/translate.py cannot translate {args.ptx}: {error}") from error
    text = ['#include "machine.h"', "namespace torch_ssam::ptx {", "namespace {"]
    for number, kernel in enumerate(kernels):
        if args.mutants is not None:
            kernel.choose_mutant(args.mutants)
        text.append(kernel.cpp(number))
    text += ["}  // namespace", "}  // namespace torch_ssam::ptx"]
    for number, kernel in enumerate(kernels):
        text.append(
            f'extern "C" __attribute__((visibility("default"))) void {kernel.name}(const void* parameters, '
            f"torch_ssam::ptx::i64 bytes, torch_ssam::ptx::i64 blocks) {{ "
            f"torch_ssam::ptx::launch(torch_ssam::ptx::kernel_{number}::kernel, parameters, bytes, blocks); }}"
        )
    args.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
