"""Compiles the CUDA kernels for every architecture we ship and looks at what came out, without a GPU.

`make ptx` calls it through tools/kernels_page.py, which writes docs/cuda_kernels.md. It fails on a register spill, a stack
frame, more than 64 registers and, in the kernels of the aligned path, on any access to the tensors that is not as wide as
csrc/ops/cuda/grid.h says: 16 bytes, but 8 for the 16-bit operands of the fused update and of scaled noise. It fails on an
instruction whose result may be another than the host's: approximations, flushed denormals, other roundings than to nearest,
min and max of floats (whose NaN and signed zeros are not C++'s), atomics (whose order is nobody's). It counts the PTX (what
we asked for) and, where a disassembler is found, the machine code. --sources and --architectures choose a part.
Tests: tests/python/test_check_ptx.py. That the PTX computes the host's bits: tests/ptx.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = re.findall(r"^set\(TORCH_SSAM_CUDA_SOURCES (.*)\)", (ROOT / "CMakeLists.txt").read_text(), re.M)[
    0
].split()
ARCHITECTURES = (80, 90, 100)
MOST_REGISTERS = 64
MOST_REGISTERS_OF_SIX_OPERANDS = (
    80  # of one element a thread, which is not about speed: csrc/ops/cuda/list_body.h
)
BYTES = {"double": 8, "float": 4, "bfloat16_t": 2, "float16_t": 2}
BYTES |= {"unsigned short": 2, "unsigned int": 4, "unsigned long": 8}
BUFFERS = {"Sgd": (0, 1, 1), "AdamW": (2, 3)}  # of each kind of each update rule (csrc/math/rules)
# Kernels whose loops the compiler may unroll as it likes: scalar (loads, stores) that they may have. The
# readout writes one sum a chunk; the backward reads the one gradient of a row, up to four rows ahead; the norms of
# rows write one sum a piece.
LOOPS = {"SquaresBody": (0, 0), "MultiplyBody": (0, 0), "ReadoutBody": (0, 1), "RowsBody": (4, 0)}
# Clipping reads a limit for each row.
LOOPS |= {"RowPiecesBody": (0, 1), "ClipPiecesBody": (1, 0)}


@dataclasses.dataclass
class Kernel:
    """One __global__ function of one architecture."""

    name: str
    registers: int
    stack: int
    spills: int
    accesses: Counter[tuple[str, int, bool]]  # (ld, st or generic, bytes, vector) in the PTX
    instructions: Counter[str]  # of the machine code; empty without a disassembler
    unlike_host: Counter[str] = dataclasses.field(default_factory=Counter)  # opcodes of the PTX

    def vectors(self, kind: str) -> Counter[int]:
        """Width to number of vector accesses."""
        return Counter({width: n for (k, width, vector), n in self.accesses.items() if k == kind and vector})

    def scalars(self, kind: str) -> int:
        return sum(n for (k, _, vector), n in self.accesses.items() if k == kind and not vector)


@dataclasses.dataclass
class Expected:
    """What a thread of a list kernel does with global memory on the aligned path."""

    elements: int
    loads: Counter[int]
    stores: Counter[int]
    # At most: seed, draw, and lr as a float or a double; by rows the scale of a group's row, or, on another path, of
    # each of its elements.
    scalar_loads: int


def split_arguments(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(c, 0)
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def template(name: str) -> tuple[str, list[str]]:
    """`Body<A, 4>` as ("Body", ["A", "4"])."""
    match = re.fullmatch(r"(\w+)<(.*)>", name)
    return (match[1], split_arguments(match[2])) if match else (name, [])


def is_aligned(name: str) -> bool:
    """Whether a thread owns several neighbours: the number among the arguments of `Body<what, count>` and the like."""
    return any(argument.isdigit() and int(argument) > 1 for argument in template(name)[1])


def buffers_of(how: str) -> int:
    """How many buffers a kind of update has: `FixedKind<Sgd, (Sgd::Kind)1>`, or all of a rule with `AnyKind<Sgd>`."""
    match = re.fullmatch(r"FixedKind<(\w+), \([\w:]*Kind\)(\d)>|AnyKind<(\w+)>", how)
    if match is None or (match[1] or match[3]) not in BUFFERS:
        raise SystemExit(
            f"tools/check_ptx.py does not know the update {how}: say there how many buffers it has."
        )
    return BUFFERS[match[1]][int(match[2])] if match[1] else max(BUFFERS[match[3]])


def expected(name: str) -> Expected:
    """Four groups of `count` neighbours a thread, each operand in accesses of 16 bytes, or of all it has."""
    op, count_text, *more = template(name)[1]
    count = int(count_text)
    kind, arguments = template(op)
    scales = 4 * (1 + count) if more == ["RowScales"] else 0

    def group(dtype: str) -> Counter[int]:
        width = min(16, count * BYTES[dtype])
        return Counter({width: 4 * count * BYTES[dtype] // width})

    none: Counter[int] = Counter()
    if kind == "PerturbOp":
        master, model, save, _ = arguments
        stores = group(model) + (group(master) if save == "true" else none)
        return Expected(4 * count, group(master), stores, 2 + scales)
    if kind == "UpdateOp":
        how, master, model, perturb, _ = arguments
        buffers = sum((group(master) for _ in range(buffers_of(how))), start=none)
        perturbed = group(model) if perturb == "true" else none
        loads = group(master) + group(model) + buffers
        return Expected(4 * count, loads, group(master) + buffers + perturbed, 2 + (2 if perturbed else 0))
    if kind == "RoundOp":
        master, model = arguments
        return Expected(4 * count, group(master), group(model), 0)
    if kind == "FollowOp":
        master, model = arguments
        return Expected(4 * count, group(master) + group(model), group(master), 0)
    if kind in ("RestoreOp", "ScaleOp"):
        return Expected(4 * count, group(arguments[0]), group(arguments[0]), 2 if kind == "ScaleOp" else 0)
    raise SystemExit(f"tools/check_ptx.py does not know the kernel {name}: say there what it may access.")


def demangle(names: list[str]) -> list[str]:
    tool = shutil.which("c++filt")
    if tool is None:
        raise SystemExit("tools/check_ptx.py needs c++filt: install binutils.")
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    out = []
    for line in done.stdout.splitlines():
        line = re.sub(r"torch_ssam::(cuda::|math::)?", "", line)
        line = line.replace(", Nothing>", ">")  # as its default is written
        match = re.match(r"void kernel<(.*?)>\(\1::Params\)$", line.replace(" >", ">"))
        if match is None:  # else it would count as one of the kernels of which nothing is asked
            raise SystemExit(f"tools/check_ptx.py cannot read the kernel's name: {line}")
        out.append(match[1])
    return out


def find_disassembler() -> str | None:
    """cuobjdump of the packages that `make ptx` installs (the extra `ptx`), or of the toolkit."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(f) for f in spec.submodule_search_locations or []] if spec else []
    tools = [tool for folder in folders for tool in sorted(folder.glob("*/bin/cuobjdump"))]
    return str(tools[0]) if tools else shutil.which("cuobjdump")


ACCESS = re.compile(r"\b(ld|st)\.(?:(?:relaxed|volatile|weak|nc|gpu)\.)*global([.\w:]*?)\.[bufs](\d+)\s")
GENERIC = re.compile(r"\b(?:ld|st)\.(?:v\d\.)?[bufs]\d+\s")  # no address space: not known to be global
ENTRY = re.compile(r"\.entry (\w+)\(.*?\)\n(.*?)\n}\n", re.S)
OPCODE = re.compile(r"^\s+(?:@!?%p\d+ )?\{?\s*([a-z][a-z0-9]*(?:\.[\w:]+)*)", re.M)
# Of floats, add, sub, mul, div, fma and sqrt must say that they round to nearest; conversions whatever rounding they say.
UNLIKE_HOST = re.compile(
    r"(?:atom|red)\..*|.*\.(?:approx|full|ftz|sat|rz|rm|rp|rna|rs|rni|rzi|rmi|rpi)(?:\..*)?"
    r"|(?:min|max)\.(?:.*\.)?(?:b?f16|b?f16x2|f32|f64)|(?:add|sub|mul|div|fma|mad|sqrt|rcp|rsqrt)\.(?!rn\.)(?:.*\.)?f(?:16|32|64).*"
)
REPORT = re.compile(
    r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads\s+ptxas info\s+: Used (\d+) registers"
)


def global_accesses(ptx: str) -> Counter[tuple[str, int, bool]]:
    found: Counter[tuple[str, int, bool]] = Counter()
    for kind, modifiers, width in ACCESS.findall(ptx):
        vector = re.search(r"\.v(\d)", modifiers)
        found[kind, (int(vector[1]) if vector else 1) * int(width) // 8, vector is not None] += 1
    found["generic", 0, False] += len(GENERIC.findall(ptx))
    return found


def unlike_host(ptx: str) -> Counter[str]:
    """The opcodes whose results may part from the host's."""
    return Counter(opcode for opcode in OPCODE.findall(ptx) if UNLIKE_HOST.fullmatch(opcode))


def machine_code(cubin: Path) -> dict[str, Counter[str]]:
    tool = find_disassembler()
    if tool is None:
        return {}
    done = subprocess.run([tool, "--dump-sass", str(cubin)], capture_output=True, text=True, check=True)
    code = {}
    for part in done.stdout.split("Function : ")[1:]:
        found = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", part, re.M)
        code[part.split("\n", 1)[0].strip()] = Counter(op for op in found if op != "NOP")
    return code


def compile_one(nvcc: str, source: str, arch: int, include: Path, folder: Path) -> list[Kernel]:
    keep = folder / f"{source}_{arch}"
    keep.mkdir()
    cubin = keep / "out.cubin"
    command = [nvcc, "--std=c++20", "--fmad=false", "-O3", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
    command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(include)]
    command += ["--keep", "--keep-dir", str(keep), "-o", str(cubin)]
    command += [str(ROOT / "csrc" / "ops" / "cuda" / f"{source}.cu")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    reports = REPORT.findall(done.stdout + done.stderr)
    bodies = dict(ENTRY.findall(next(keep.glob("*.ptx")).read_text()))
    code = machine_code(cubin)
    return [
        Kernel(
            name,
            int(registers),
            int(stack),
            int(stores) + int(loads),
            global_accesses(bodies[m]),
            code.get(m, Counter()),
            unlike_host(bodies[m]),
        )
        for name, (m, stack, stores, loads, registers) in zip(
            demangle([r[0] for r in reports]), reports, strict=True
        )
    ]


def most_registers(name: str) -> int:
    """How many a kernel may use: by rules of three buffers with noise, one element a thread, more than others."""
    kind, arguments = template(template(name)[1][0]) if template(name)[1] else ("", [])
    six = (
        kind == "UpdateOp"
        and not is_aligned(name)
        and arguments[3] == "true"
        and buffers_of(arguments[0]) > 2
    )
    return MOST_REGISTERS_OF_SIX_OPERANDS if six else MOST_REGISTERS


def problems(arch: int, kernel: Kernel) -> list[str]:
    out = []
    if kernel.registers > most_registers(kernel.name):
        out.append(f"{kernel.registers} registers")
    if kernel.spills or kernel.stack:
        out.append(f"{kernel.stack} bytes of stack frame, {kernel.spills} bytes spilled")
    if local := [op for op in kernel.instructions if op.startswith(("LDL", "STL"))]:
        out.append(f"local memory in the machine code: {local}")
    if kernel.unlike_host:
        out.append(f"instructions that may part from the host: {dict(kernel.unlike_host)}")
    if kernel.scalars("generic"):
        out.append("accesses that are not known to be global")
    if is_aligned(kernel.name):
        loads, stores = kernel.vectors("ld"), kernel.vectors("st")
        body = template(kernel.name)[0]
        if body in LOOPS:
            most = LOOPS[body]
            if not loads or any(width != 16 for width in (*loads, *stores)):
                out.append(f"accesses that are not 16 bytes wide: {loads} {stores}")
        else:
            wanted = expected(kernel.name)
            most = (wanted.scalar_loads, 0)
            if (loads, stores) != (wanted.loads, wanted.stores):
                out.append(f"vector accesses {loads} {stores}; expected {wanted.loads} {wanted.stores}")
        if (kernel.scalars("ld"), kernel.scalars("st")) > most or kernel.scalars("st") > most[1]:
            found = (kernel.scalars("ld"), kernel.scalars("st"))
            out.append(f"scalar accesses in the aligned path (loads, stores): {found}, at most {most}")
        narrow = [op for op in kernel.instructions if re.match(r"STG\.E(?!\.(128|64))", op)]
        if narrow and body != "ReadoutBody":
            out.append(f"narrow stores in the machine code: {narrow}")
    return [f"sm_{arch} {kernel.name}: {text}" for text in out]


def tool(name: str, variable: str) -> str:
    found = os.environ.get(variable) or shutil.which(name)
    if found is None:
        raise SystemExit(
            f"tools/check_ptx.py needs nvcc >= 12.8: install the CUDA toolkit, or set {variable}."
        )
    return found


def compiled(sources: Sequence[str], architectures: Sequence[int], jobs: int) -> dict[int, dict[str, Kernel]]:
    """By architecture and name; ends with exit code 1 where a kernel is not as it should be."""
    nvcc = tool("nvcc", "CUDACXX")
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("tools/check_ptx.py needs PyTorch's headers: an environment that has torch.")
    include = Path(spec.submodule_search_locations[0]) / "include"
    kernels: dict[int, dict[str, Kernel]] = {a: {} for a in architectures}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        tasks = [
            (a, pool.submit(compile_one, nvcc, s, a, include, Path(folder)))
            for s in sources
            for a in architectures
        ]
        for arch, task in tasks:
            kernels[arch] |= {k.name: k for k in task.result()}
    found = [text for a in architectures for k in kernels[a].values() for text in problems(a, k)]
    print("\n".join(found))
    count = sum(len(of_arch) for of_arch in kernels.values())
    print(f"{count} kernels, {len(found)} problems")
    if not any(k.instructions for of_arch in kernels.values() for k in of_arch.values()):
        print("no cuobjdump found: looked at PTX and ptxas's report only")
    if found or count == 0:
        raise SystemExit(1)
    return kernels


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES, help="kernels")
    parser.add_argument(
        "--architectures",
        nargs="+",
        type=int,
        choices=ARCHITECTURES,
        default=ARCHITECTURES,
        help="compute capabilities, 80 for 8.0",
    )
    args = parser.parse_args()
    compiled(args.sources, args.architectures, args.jobs)


if __name__ == "__main__":
    main()
