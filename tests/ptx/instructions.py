"""What one PTX instruction does, as a C++ statement: RULES has every opcode that the translator knows.

An opcode is matched as a whole, its modifiers included, so that `.approx`, `.ftz`, `.sat`, another rounding than `.rn`,
atomics and float min/max are unknown, and an unknown one is an error: nothing is ever guessed. Semantics: NVIDIA's PTX
ISA 9.0, "Instruction Set"; the functions that the statements call are in machine.h. Tests: test_ptx_translator.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

INTEGERS = {
    f"{sign}{bits}": f"{c}{bits}" for bits in (8, 16, 32, 64) for sign, c in zip("ubs", "uui", strict=True)
}
FLOATS = {"f32": "float", "f64": "double"}
C_TYPES = INTEGERS | FLOATS | {"pred": "u8"}  # a predicate is 0 or 1
BITS = {name: int(name[1:]) for name in INTEGERS | FLOATS}
CLASSES = {"p": "pred", "rs": "b16", "r": "b32", "rd": "b64", "f": "f32", "fd": "f64"}  # %rs1 has 16 bits
SPECIAL = {"%tid.x": "thread", "%ctaid.x": "block", "%ntid.x": "256u"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARISONS |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


class Unknown(Exception):
    """An instruction or operand that the translator does not know."""


class Operands:
    """The names of one kernel as C++ expressions: registers of whatever type an instruction reads them in."""

    def __init__(self, parameter: str, parameter_bytes: int, shared: dict[str, int], prefix: str) -> None:
        self.parameter, self.parameter_bytes, self.shared, self.prefix = (
            parameter,
            parameter_bytes,
            shared,
            prefix,
        )

    def class_of(self, operand: str) -> str | None:
        match = re.fullmatch(r"%(p|rd|rs|r|fd|f)\d+", operand)
        return CLASSES[match[1]] if match else None

    def name(self, register: str) -> str:
        return self.prefix + register[1:]

    def read(self, operand: str, type: str) -> str:
        held = self.class_of(operand)
        if held is not None:
            return self._read_register(operand, held, type)
        if operand in SPECIAL and type in INTEGERS:
            return f"({C_TYPES[type]}){SPECIAL[operand]}"
        match = re.fullmatch(r"0([fd])([0-9A-Fa-f]{8}(?:[0-9A-Fa-f]{8})?)", operand)
        if match and BITS.get(type) == 4 * len(match[2]):
            return f"bits_as<{C_TYPES[type]}>(0x{match[2]}{'u' if match[1] == 'f' else 'ull'})"
        if re.fullmatch(r"-?\d+|0[xX][0-9A-Fa-f]+U?", operand) and type in INTEGERS:
            return f"({C_TYPES[type]})0x{int(operand.rstrip('U'), 0) % 2 ** BITS[type]:x}ull"
        if operand == self.parameter and BITS.get(type) == 64:
            return "(u64)(uintptr_t)parameters"
        if operand in self.shared and BITS.get(type) in (32, 64):
            return f"({C_TYPES[type]}){self.shared[operand]}u"
        raise Unknown(f"{operand} as .{type}")

    def _read_register(self, register: str, held: str, type: str) -> str:
        name = self.name(register)
        if held == type:
            return name
        if "pred" in (held, type) or BITS[held] < BITS[type]:
            raise Unknown(f"{register} as .{type}")
        if held in FLOATS or type in FLOATS:
            if BITS[held] != BITS[type]:
                raise Unknown(f"{register} as .{type}")
            return f"bits_as<{C_TYPES[type]}>({name})"
        return f"({C_TYPES[type]}){name}"

    def write(self, register: str, type: str, expression: str) -> str:
        """The register takes a value of the type; a wider register of integers extends it as the type's sign says."""
        held = self.class_of(register)
        if held is None or (held != type and ("pred" in (held, type) or BITS[held] < BITS[type])):
            raise Unknown(f"{register} takes .{type}")
        name = self.name(register)
        if held == type and (held == "pred" or held in FLOATS):
            return f"{name} = {expression};"
        if held in FLOATS or type in FLOATS:
            if BITS[held] != BITS[type]:
                raise Unknown(f"{register} takes .{type}")
            return f"{name} = bits_as<{C_TYPES[held]}>(({C_TYPES[type]})({expression}));"
        return f"{name} = ({C_TYPES[held]})({C_TYPES[type]})({expression});"


Rule = Callable[[Operands, "re.Match[str]", list[str]], str]
RULES: list[tuple[re.Pattern[str], Rule]] = []


def rule(pattern: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.append((re.compile(pattern), function))
        return function

    return add


@functools.cache
def find(opcode: str) -> tuple[Rule, re.Match[str]]:
    found = [(function, match) for pattern, function in RULES if (match := pattern.fullmatch(opcode))]
    if len(found) != 1:
        raise Unknown(f"opcode {opcode}")
    return found[0]


def statement(operands: Operands, opcode: str, arguments: list[str]) -> str:
    function, match = find(opcode)
    return function(operands, match, arguments)


def pieces_of(vector: str) -> list[str]:
    return [piece.strip() for piece in vector.strip("{} ").split(",")]


FLOAT = r"(f32|f64)"
UNSIGNED_OR_SIGNED = r"([us])(16|32|64)"


@rule(r"ret")
def _return(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return "return kDone;"


@rule(r"bra(?:\.uni)?")
def _branch(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return f"goto {a[0].lstrip('$')};"


@rule(r"mov\.(pred|[bsu](?:16|32|64)|f32|f64)")
def _move(o: Operands, m: re.Match[str], a: list[str]) -> str:
    to, source = a
    type = m[1]
    if to.startswith("{"):  # its first register gets the lowest bits; of `_` nothing is kept
        parts = pieces_of(to)
        each = BITS[type] // len(parts)
        whole = o.read(source, type)
        lines = [f"{{ const {C_TYPES[type]} whole = {whole};"]
        lines += [o.write(r, f"b{each}", f"whole >> {each * i}") for i, r in enumerate(parts) if r != "_"]
        return " ".join(lines) + " }"
    if source.startswith("{"):
        parts = pieces_of(source)
        each = BITS[type] // len(parts)
        joined = [f"({C_TYPES[type]})({o.read(r, f'b{each}')}) << {each * i}" for i, r in enumerate(parts)]
        return o.write(to, type, " | ".join(joined))
    return o.write(to, type, o.read(source, type))


@rule(r"(ld)\.param()(?:\.v([24]))?\.([usb](?:8|16|32|64)|f32|f64)")
@rule(r"(ld)\.(global)(?:\.nc)?(?:\.v([24]))?\.([usb](?:8|16|32|64)|f32|f64)")
@rule(r"(ld|st)\.(shared)(?:\.v([24]))?\.([usb](?:8|16|32|64)|f32|f64)")
@rule(r"(st)\.(global)(?:\.v([24]))?\.([usb](?:8|16|32|64)|f32|f64)")
def _access(o: Operands, m: re.Match[str], a: list[str]) -> str:
    load, space, count, type = m[1] == "ld", m[2] or "param", int(m[3] or 1), m[4]
    where, registers = (a[1], pieces_of(a[0])) if load else (a[0], pieces_of(a[1]))
    match = re.fullmatch(r"\[([^\s+\]]+)(?:\+(-?\d+))?\]", where)
    if match is None or len(registers) != count:
        raise Unknown(f"address {where} of {count}")
    offset, size = int(match[2] or 0), BITS[type] // 8
    if match[1] == o.parameter and not 0 <= offset <= o.parameter_bytes - size * count:
        raise Unknown(f"{where} outside the {o.parameter_bytes} bytes of the parameter")
    base = o.read(match[1], "u32" if space == "shared" else "u64")
    memory = "shared, " if space == "shared" else ""
    lines = [f"{{ auto* const at = {m[1]}_{space}({memory}{base} + {offset}, {size * count});"]
    for i, register in enumerate(registers):
        if load:
            lines.append(o.write(register, type, f"get<{C_TYPES[type]}>(at + {i * size})"))
        else:
            lines.append(f"put<{C_TYPES[type]}>(at + {i * size}, {o.read(register, type)});")
    return " ".join(lines) + " }"


@rule(r"cvta\.to\.global\.u64")
def _to_global(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return o.write(a[0], "u64", o.read(a[1], "u64"))


@rule(r"cvt\.([us](?:8|16|32|64))\.([us](?:8|16|32|64))")
@rule(r"cvt\.(f64)\.(f32)")
@rule(r"cvt\.rn\.(f32)\.(f64)")
@rule(r"cvt\.rn\.(f32|f64)\.([us](?:8|16|32|64))")
def _convert(o: Operands, m: re.Match[str], a: list[str]) -> str:
    value = o.read(a[1], m[2])
    if m[1] in INTEGERS:
        return o.write(a[0], m[1], value)
    return o.write(
        a[0], m[1], f"result(({C_TYPES[m[1]]}){value})"
    )  # in the host's rounding, which is to nearest


@rule(rf"(add|sub|mul|div)\.rn\.{FLOAT}")
def _float_arithmetic(o: Operands, m: re.Match[str], a: list[str]) -> str:
    sign = {"add": "+", "sub": "-", "mul": "*", "div": "/"}[m[1]]
    return o.write(a[0], m[2], f"result({o.read(a[1], m[2])} {sign} {o.read(a[2], m[2])})")


@rule(rf"fma\.rn\.{FLOAT}")
def _fused(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return o.write(a[0], m[1], f"result(std::fma({', '.join(o.read(x, m[1]) for x in a[1:])}))")


@rule(rf"sqrt\.rn\.{FLOAT}")
def _root(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return o.write(a[0], m[1], f"result(std::sqrt({o.read(a[1], m[1])}))")


@rule(rf"(abs|neg)\.{FLOAT}")
def _sign_bit(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return o.write(a[0], m[2], f"{m[1]}_bits({o.read(a[1], m[2])})")


@rule(rf"(add|sub)\.{UNSIGNED_OR_SIGNED}")
@rule(rf"(mul)\.lo\.{UNSIGNED_OR_SIGNED}")
def _integer_arithmetic(o: Operands, m: re.Match[str], a: list[str]) -> str:
    sign, type = {"add": "+", "sub": "-", "mul": "*"}[m[1]], f"u{m[3]}"
    return o.write(a[0], type, f"{o.read(a[1], type)} {sign} {o.read(a[2], type)}")


@rule(rf"mad\.lo\.{UNSIGNED_OR_SIGNED}")
def _multiply_add(o: Operands, m: re.Match[str], a: list[str]) -> str:
    type = f"u{m[2]}"
    return o.write(a[0], type, f"{o.read(a[1], type)} * {o.read(a[2], type)} + {o.read(a[3], type)}")


@rule(r"mul\.wide\.([us])(16|32)")
def _multiply_wide(o: Operands, m: re.Match[str], a: list[str]) -> str:
    type, wide = m[1] + m[2], m[1] + str(2 * int(m[2]))
    return o.write(a[0], wide, " * ".join(f"({C_TYPES[wide]})({o.read(x, type)})" for x in a[1:]))


@rule(r"(div|rem|min|max)\.([us](?:16|32|64))")
def _integer_function(o: Operands, m: re.Match[str], a: list[str]) -> str:
    type = C_TYPES[m[2]]
    return o.write(a[0], m[2], f"{m[1]}_integer<{type}>({o.read(a[1], m[2])}, {o.read(a[2], m[2])})")


@rule(r"neg\.s(16|32|64)")
def _integer_negative(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return o.write(a[0], f"u{m[1]}", f"0 - {o.read(a[1], f'u{m[1]}')}")


@rule(r"(and|or|xor)\.(pred|b16|b32|b64)")
def _logic(o: Operands, m: re.Match[str], a: list[str]) -> str:
    sign = {"and": "&", "or": "|", "xor": "^"}[m[1]]
    return o.write(a[0], m[2], f"{o.read(a[1], m[2])} {sign} {o.read(a[2], m[2])}")


@rule(r"not\.(pred|b16|b32|b64)")
def _not(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return o.write(a[0], m[1], f"{'!' if m[1] == 'pred' else '~'}{o.read(a[1], m[1])}")


@rule(r"(shl)\.(b16|b32|b64)")
@rule(r"(shr)\.([usb](?:16|32|64))")
def _shift(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return o.write(a[0], m[2], f"{m[1]}<{C_TYPES[m[2]]}>({o.read(a[1], m[2])}, {o.read(a[2], 'u32')})")


@rule(r"shf\.(l|r)\.wrap\.(b32)")
@rule(r"(prmt)\.(b32)")
def _three_words(o: Operands, m: re.Match[str], a: list[str]) -> str:
    function = m[1] if m[1] == "prmt" else f"funnel_{m[1]}"
    return o.write(a[0], "b32", f"{function}({', '.join(o.read(x, 'b32') for x in a[1:])})")


@rule(r"selp\.([usb](?:16|32|64)|f32|f64)")
def _select(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return o.write(a[0], m[1], f"{o.read(a[3], 'pred')} ? {o.read(a[1], m[1])} : {o.read(a[2], m[1])}")


@rule(r"setp\.(eq|ne|lt|le|gt|ge|lo|ls|hi|hs)\.([usb](?:16|32|64))")
@rule(rf"setp\.(eq|lt|le|gt|ge)\.{FLOAT}")
def _compare(o: Operands, m: re.Match[str], a: list[str]) -> str:
    return o.write(a[0], "pred", f"{o.read(a[1], m[2])} {COMPARISONS[m[1]]} {o.read(a[2], m[2])}")


@rule(rf"setp\.(neu|ltu|leu|gtu|geu|nan|num|equ|ne)\.{FLOAT}")
def _compare_unordered(o: Operands, m: re.Match[str], a: list[str]) -> str:
    x, y = o.read(a[1], m[2]), o.read(a[2], m[2])
    opposite = {"neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
    if m[1] in opposite:
        return o.write(a[0], "pred", f"!({x} {opposite[m[1]]} {y})")
    unordered = f"__builtin_isunordered({x}, {y})"
    whole = {"nan": unordered, "num": f"!{unordered}", "equ": f"{unordered} || {x} == {y}"}
    return o.write(a[0], "pred", (whole | {"ne": f"!{unordered} && {x} != {y}"})[m[1]])
