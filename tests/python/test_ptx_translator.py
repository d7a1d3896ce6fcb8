"""The translator of PTX (tests/ptx): what it does not know is an error that names it; mutants are other instructions; a kernel
that no test ran is an error. What translated instructions compute: tests/ptx/test_launcher.cpp.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import instructions
import mutants
import mutate
import pytest
import translate

FOLDER = Path(translate.__file__).parent
BY_HAND = (FOLDER / "data" / "by_hand.ptx").read_text()


def kernel(
    code: str, registers: str = ".reg .b32 %r<9>; .reg .f32 %f<9>; .reg .pred %p<3>; .reg .b64 %rd<9>;"
) -> str:
    return (
        ".visible .entry one(\n\t.param .align 8 .b8 one_param_0[8]\n)\n.maxntid 256, 1, 1\n"
        f"{{\n{registers}\n{code}\nret;\n}}\n"
    )


@pytest.mark.parametrize(
    "code",
    [
        "sqrt.approx.f32 %f1, %f2;",
        "div.full.f32 %f1, %f2, %f3;",
        "add.rn.ftz.f32 %f1, %f2, %f3;",
        "add.rz.f32 %f1, %f2, %f3;",
        "add.f32 %f1, %f2, %f3;",
        "fma.rn.sat.f32 %f1, %f2, %f3, %f4;",
        "max.f32 %f1, %f2, %f3;",
        "min.NaN.f32 %f1, %f2, %f3;",
        "cvt.rz.f32.f64 %f1, %fd1;",
        "cvt.rzi.s32.f32 %r1, %f2;",
        "ex2.approx.f32 %f1, %f2;",
        "atom.global.add.u32 %r1, [%rd1], 1;",
        "red.global.add.f32 [%rd1], %f1;",
        "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;",
        "ld.volatile.global.u32 %r1, [%rd1];",
        "ld.u32 %r1, [%rd1];",
        "st.local.u32 [%rd1], %r1;",
        "cp.async.ca.shared.global [%r1], [%rd1], 16;",
        "bar.sync 1;",
        "@%p1 bar.sync 0;",
        "prmt.b32.f4e %r1, %r2, %r3, %r4;",
        "mul.hi.u32 %r1, %r2, %r3;",
        "setp.lt.and.s32 %p1, %r1, %r2, %p2;",
        "mov.u32 %r1, %laneid;",
        "mov.u64 %rd1, %r1;",
        "add.s64 %rd1, %r1, 1;",
        "mov.u32 %r1, %unknown;",
        "ld.param.u64 %rd1, [one_param_0+4];",
    ],
)
def test_an_instruction_that_is_not_known_is_an_error_that_names_the_kernel(code: str) -> None:
    with pytest.raises(instructions.Unknown, match="one: "):
        translate.kernels_of(kernel(code), {})


def test_other_launch_bounds_functions_and_constants_are_errors() -> None:
    good = kernel("mov.u32 %r1, 1;")
    assert [k.name for k in translate.kernels_of(good, {})] == ["one"]
    with pytest.raises(instructions.Unknown, match="other than 256 threads"):
        translate.kernels_of(good.replace("256, 1, 1", "128, 1, 1"), {})
    with pytest.raises(instructions.Unknown, match="constants"):
        translate.kernels_of("\n.const .align 4 .b8 table[16];\n" + good, {})
    with pytest.raises(instructions.Unknown, match="of the known form"):
        translate.kernels_of(
            good.replace(".param .align 8 .b8 one_param_0[8]", ".param .u64 one_param_0"), {}
        )


def test_every_opcode_is_known_by_one_rule_or_none() -> None:
    for opcode in ("add.rn.f32", "add.s32", "ld.global.nc.v4.f32", "cvt.rn.f32.f64", "setp.nan.f32"):
        assert instructions.find(opcode)
    for opcode in ("add.rn.f16", "add", "addrn.f32", "cvt.f32.f64"):
        with pytest.raises(instructions.Unknown, match=opcode):
            instructions.find(opcode)


def test_mutants_are_of_instructions_that_ran() -> None:
    everything = {"functions": "1111", "sum": "1" * 9}
    kernels = {k.name: k for k in translate.kernels_of(BY_HAND, everything)}
    for name in everything:
        before = list(kernels[name].lines)
        kernels[name].choose_mutant(3)
        changed = [i for i, line in enumerate(before) if kernels[name].lines[i] != line]
        assert len(changed) == 1
        assert "if (mutated)" in kernels[name].lines[changed[0]]
        assert kernels[name].mutation
    assert not any(k.candidates for k in translate.kernels_of(BY_HAND, {}))
    # After the branch to the end nothing ran: what is left is the comparison before it.
    part = {"functions": "1000"}
    one = translate.kernels_of(BY_HAND, part)[0]
    assert [one.code[c.number] for c in one.candidates] == [("setp.ne.s32", ["%p1", "%r1", "0"])]


def test_logs_of_several_processes_are_one_account(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("one 3 100\ntwo 1 10\n")
    second.write_text("one 2 001\n")
    assert mutants.blocks_that_ran([first, second]) == {"one": "101", "two": "10"}


def test_a_mutant_is_described_by_what_it_reads_and_what_reads_it() -> None:
    code = kernel(
        "mov.u32 %r1, %tid.x;\nand.b32 %r2, %r1, 63;\nadd.s32 %r3, %r2, 5;\nshl.b32 %r4, %r3, 2;\nadd.s32 %r5, %r4, 1;"
    )
    (one,) = translate.kernels_of(code, {"one": "1"})
    number = next(i for i, (_, arguments) in enumerate(one.code) if arguments[:1] == ["%r3"])
    assert mutants.described(one.code, number) == "and.b32 63 -> add.s32 5 -> shl.b32 2 (add.s32 1)"


def test_every_reason_why_a_mutant_is_not_noticed_can_be_read() -> None:
    known = mutate.reasons(mutate.REASONS)
    assert known
    choice = "ld.param.u64 -> or.b64 -> and.b64 -4294967296 (setp.eq.s64 0)"
    assert "32 or of 64 bits" in str(mutate.why_not_noticed(known, "ListBody<RestoreOp<float>, 1>", choice))
    plain = "mov.b32 -> mul.rn.f32 -> fma.rn.f32"
    assert mutate.why_not_noticed(known, "ListBody<RestoreOp<float>, 1>", plain) is None


@pytest.mark.parametrize("line", ["kernels\treason", ".\t\twhy", "(\t.\twhy"])
def test_a_reason_that_says_nothing_is_an_error(tmp_path: Path, line: str) -> None:
    table = tmp_path / "table.tsv"
    table.write_text(f"# a comment\n{line}\n")
    with pytest.raises(SystemExit, match=r"table\.tsv:2"):
        mutate.reasons(table)


# The program notices nothing, or the mutant of one; a reason is known for the other, or for none.
@pytest.mark.parametrize(("noticed", "explained"), [(True, True), (True, False), (False, True)])
def test_a_survivor_needs_a_reason(tmp_path: Path, noticed: bool, explained: bool) -> None:
    program, source, tests = tmp_path / "walks", tmp_path / "translated.cpp", tmp_path / "tests.log"
    program.write_text(f'#!/bin/sh\n[ "$TORCH_SSAM_PTX_MUTANT" != one ] || exit {int(noticed)}\n')
    program.chmod(0o755)
    source.write_text(
        "".join(f'Kernel kernel{{"{n}", step, &mutated, "add.s32 {n}"}};\n' for n in ("one", "two"))
    )
    tests.write_text("".join(f"Random.case {n} 3\n" for n in ("one", "two")))
    table = tmp_path / "table.tsv"
    table.write_text("two\tadd\\.s32\tit changes nothing\n" if explained else "")
    command = [sys.executable, str(FOLDER / "mutate.py"), str(program), "--tests", str(tests)]
    command += ["--sources", str(source), "--reasons", str(table), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert f"{int(noticed)} of 2 mutants noticed" in done.stdout
    assert len((tmp_path / "out").read_text().splitlines()) == 2
    assert ("1 survived: it changes nothing" in done.stdout) == explained
    assert done.returncode == int(not (noticed and explained))
    assert ("one: add.s32 one" in done.stderr) == (not noticed)
    assert ("two: add.s32 two" in done.stderr) == (not explained)


@pytest.mark.parametrize("idle", [False, True])
def test_a_kernel_of_the_library_that_no_test_ran_is_an_error(tmp_path: Path, idle: bool) -> None:
    names = [k.name for k in translate.kernels_of(BY_HAND, {})]
    log = tmp_path / "log"
    log.write_text("".join(f"{name} 2 110\n" for name in (names[1:] if idle else names)))
    command = [
        sys.executable,
        str(FOLDER / "kernels_ran.py"),
        "--logs",
        str(log),
        "--ptx",
        str(FOLDER / "data" / "by_hand.ptx"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    ran = len(names) - idle
    assert f"7 kernels, {ran} run, {2 * ran} launches; {2 * ran} of {3 * ran} basic blocks" in done.stdout
    assert done.returncode == int(idle)
    assert ("No test ran these kernels" in done.stderr and "functions" in done.stderr) == idle
