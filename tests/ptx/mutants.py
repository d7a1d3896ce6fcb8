"""Another instruction in an instruction's place: whether a test notices tells what the tests see.

A mutant is the smallest change of its kind: the neighbouring number where a product was rounded, two roundings in the place
of one, the other branch of a comparison. Which instruction of a kernel is exchanged, of those that the tests run, a seed
decides. mutate.py counts how many are noticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from instructions import C_TYPES, FLOATS, Operands, statement

SWAPPED = {"add": "sub", "sub": "add", "and": "or", "or": "and", "xor": "or", "min": "max", "max": "min"}
OPPOSITE = {"eq": "ne", "ne": "eq", "lt": "le", "le": "lt", "gt": "ge", "ge": "gt"}


class Candidate(NamedTuple):
    at: int  # line
    line: str
    mutant: str
    number: int  # of the instruction in its kernel


def blocks_that_ran(logs: Iterable[Path]) -> dict[str, str]:
    """Of each kernel a 0 or 1 for every block, over all lines of the launcher's logs: name, launches, blocks."""
    ran: dict[str, str] = {}
    for log in logs:
        for line in log.read_text().splitlines():
            name, _, blocks = line.split()
            before = ran.get(name, "0" * len(blocks))
            ran[name] = "".join("1" if "1" in pair else "0" for pair in zip(before, blocks, strict=True))
    return ran


def _with_constants(opcode: str, arguments: list[str]) -> str:
    return " ".join([opcode, *(re.sub(r"\w+_param_0", "param", a) for a in arguments[1:] if "%" not in a)])


def described(code: list[tuple[str, list[str]]], number: int) -> str:
    """`makers -> instruction -> readers (readers of theirs)`: an instruction among those that make what it reads and those that
    read what it makes, by opcodes and constants. Without register numbers, so that a reason outlives a change of the kernel."""
    opcode, arguments = code[number]
    makers = {
        _with_constants(o, a)
        for i, (o, a) in enumerate(code)
        if a and i != number and not o.startswith(("st.", "bra")) and any(a[0] == x for x in arguments[1:])
    }
    readers = set()
    for user, operands in _readers(code, arguments[0]):
        then = sorted(
            {_with_constants(*reader) for reader in _readers(code, operands[0])} if operands else ()
        )
        readers.add(_with_constants(user, operands) + (f" ({', '.join(then[:6])})" if then else ""))
    parts = (sorted(makers)[:6], [_with_constants(opcode, arguments)], sorted(readers)[:6])
    return " -> ".join("; ".join(part) for part in parts)


def _readers(code: list[tuple[str, list[str]]], register: str) -> list[tuple[str, list[str]]]:
    read = re.compile(re.escape(register) + r"\b")
    return [
        (opcode, arguments)
        for opcode, arguments in code
        if any(read.search(a) for a in (arguments if opcode.startswith(("st.", "bra")) else arguments[1:]))
    ]


def of(o: Operands, opcode: str, a: list[str]) -> str | None:
    head, *middle, type = opcode.split(".") if "." in opcode else [opcode, ""]
    if head in SWAPPED:
        return statement(o, ".".join([SWAPPED[head], *middle, type]), a)
    if head == "selp":
        return statement(o, opcode, [a[0], a[2], a[1], a[3]])
    if head == "setp" and middle[0] in OPPOSITE and type not in FLOATS:
        return statement(o, f"setp.{OPPOSITE[middle[0]]}.{type}", a)
    if head in ("shl", "shr"):
        return o.write(
            a[0], type, f"{head}<{C_TYPES[type]}>({o.read(a[1], type)}, {o.read(a[2], 'u32')} + 1)"
        )
    if head == "shf":
        function = f"funnel_{middle[0]}"
        return o.write(
            a[0], type, f"{function}({o.read(a[1], type)}, {o.read(a[2], type)}, {o.read(a[3], 'u32')} + 1)"
        )
    if type in FLOATS and re.fullmatch(r"mul|div|fma|sqrt|neg", head):
        return o.write(a[0], type, _other_float(o, head, type, a))
    return None


def _other_float(o: Operands, head: str, type: str, a: list[str]) -> str:
    x, *others = [o.read(argument, type) for argument in a[1:]]
    if head == "neg":
        return x
    if head == "fma":
        return f"result({x} * {others[0]} + {others[1]})"
    if head == "div":
        return f"result({x} * ({C_TYPES[type]}(1) / {others[0]}))"
    if head == "sqrt":
        return f"neighbour(std::sqrt({x}))"
    return f"neighbour({x} * {others[0]})"
