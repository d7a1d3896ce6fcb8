"""tools/check_ptx.py, which `make ptx` runs over all CUDA kernels: that it refuses what it says it refuses,
and, where nvcc is, what it says of the kernels of perturb.cu and rows.cu for one architecture (the whole takes
minutes).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "check_ptx.py"


@pytest.fixture(scope="module")
def check_ptx() -> Any:
    spec = importlib.util.spec_from_file_location("check_ptx", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_ptx"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


# As it should be: four groups of four floats a thread, read and written 16 bytes at a time.
GOOD = {
    "name": "ListBody<PerturbOp<float, float, false, false>, 4>",
    "registers": 64,
    "stack": 0,
    "spills": 0,
    "accesses": Counter({("ld", 16, True): 4, ("st", 16, True): 4, ("ld", 8, False): 2}),
    "instructions": Counter({"LDG.E.128": 4, "STG.E.128": 4, "FFMA": 100}),
}


def test_a_good_kernel_has_no_problems(check_ptx: Any) -> None:
    assert check_ptx.problems(90, check_ptx.Kernel(**GOOD)) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"registers": 65}, "65 registers"),
        ({"stack": 8}, "8 bytes of stack frame"),
        ({"spills": 4}, "4 bytes spilled"),
        ({"instructions": Counter({"STL.64": 1})}, "local memory"),
        ({"instructions": Counter({"STG.E.128": 4, "STG.E.U16": 1})}, "narrow stores"),
        ({"accesses": Counter({("ld", 16, True): 4, ("st", 4, False): 16})}, "vector accesses"),
        ({"accesses": Counter({("ld", 8, True): 8, ("st", 16, True): 4})}, "vector accesses"),
        (
            {"accesses": Counter({("ld", 16, True): 4, ("st", 16, True): 4, ("ld", 4, False): 5})},
            "scalar accesses",
        ),
        (
            {"accesses": Counter({("ld", 16, True): 4, ("st", 16, True): 4, ("st", 4, False): 1})},
            "scalar accesses",
        ),
        ({"accesses": GOOD["accesses"] + Counter({("generic", 0, False): 1})}, "not known to be global"),
        ({"unlike_host": Counter({"sqrt.approx.f32": 2})}, "may part from the host: {'sqrt.approx.f32': 2}"),
    ],
)
def test_what_is_not_as_it_should_be_is_named(check_ptx: Any, changed: dict[str, Any], message: str) -> None:
    found = check_ptx.problems(90, check_ptx.Kernel(**{**GOOD, **changed}))
    assert len(found) >= 1
    assert any(message in text for text in found)


# By rows a thread reads the scale of each group's row, or of each of its elements.
BY_ROWS = {
    **GOOD,
    "name": "ListBody<PerturbOp<float, float, false, false>, 4, RowScales>",
    "accesses": GOOD["accesses"] + Counter({("ld", 4, False): 20}),
}
BY_ELEMENT = {
    **GOOD,
    "name": "ListBody<UpdateOp<AnyKind<Sgd>, float, bfloat16_t, true, true>, 4>",
    "accesses": Counter({("ld", 16, True): 8, ("ld", 8, True): 4, ("st", 16, True): 8, ("st", 8, True): 4}),
    "instructions": Counter({"STG.E.128": 8, "STG.E.64": 4}),
}
ROW_NORMS = {
    **GOOD,
    "name": "RowPiecesBody<LargestMagnitude, bfloat16_t, 8>",
    "accesses": Counter({("ld", 16, True): 9, ("st", 8, False): 1}),
    "instructions": Counter({"STG.E.64": 1}),
}


@pytest.mark.parametrize("good", [BY_ROWS, BY_ELEMENT, ROW_NORMS], ids=["rows", "element", "norms"])
def test_kernels_of_scaled_noise_have_their_own_limits(check_ptx: Any, good: dict[str, Any]) -> None:
    def found(**changed: Any) -> list[str]:
        return list(check_ptx.problems(90, check_ptx.Kernel(**{**good, **changed})))

    assert check_ptx.is_aligned(good["name"])
    assert found() == []
    assert any("spilled" in text for text in found(spills=8))
    more = Counter({("ld", 4, False): 9})
    assert any("scalar accesses" in text for text in found(accesses=good["accesses"] + more))
    more = Counter({("st", 2, False): 2})
    assert any("scalar accesses" in text for text in found(accesses=good["accesses"] + more))
    more = Counter({("ld", 8, True): 1})
    assert any("accesses" in text for text in found(accesses=good["accesses"] + more))


def test_kinds_of_update_have_the_buffers_of_their_rule(check_ptx: Any) -> None:
    for kind, buffers in ((0, 0), (1, 1), (2, 1)):
        assert check_ptx.buffers_of(f"FixedKind<Sgd, (Sgd::Kind){kind}>") == buffers
    assert check_ptx.buffers_of("AnyKind<Sgd>") == 1
    assert [check_ptx.buffers_of(f"FixedKind<AdamW, (AdamW::Kind){kind}>") for kind in (0, 1)] == [2, 3]
    assert check_ptx.buffers_of("AnyKind<AdamW>") == 3
    for unknown in ("AnyKind<Other>", "FixedKind<Other, (Other::Kind)0>", "AnyKind"):
        with pytest.raises(SystemExit, match="does not know the update"):
            check_ptx.buffers_of(unknown)


def test_only_one_element_a_thread_with_three_buffers_and_noise_may_use_more_registers(
    check_ptx: Any,
) -> None:
    def most(rule: str, perturb: str, count: int) -> int:
        name = f"ListBody<UpdateOp<{rule}, float, float, {perturb}, false>, {count}>"
        found: int = check_ptx.most_registers(name)
        return found

    assert most("AnyKind<AdamW>", "true", 1) == 80
    assert most("AnyKind<AdamW>", "false", 1) == most("AnyKind<Sgd>", "true", 1) == 64
    assert most("FixedKind<AdamW, (AdamW::Kind)1>", "true", 4) == most("AnyKind<AdamW>", "true", 4) == 64
    assert check_ptx.most_registers(BY_ROWS["name"]) == check_ptx.most_registers("AdvanceBody") == 64


def test_accesses_are_read_from_ptx(check_ptx: Any) -> None:
    ptx = """
	ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
	ld.global.nc.f32 %f1, [%rd2];
	st.global.v2.b32 [%rd3], {%r1, %r2};
	st.global.u16 [%rd4], %rs1;
	ld.param.u64 %rd5, [kernel_param_0];
	st.shared.f32 [%r9], %f1;
	ld.f32 %f2, [%rd6];
"""
    assert check_ptx.global_accesses(ptx) == {
        ("ld", 16, True): 1,
        ("ld", 4, False): 1,
        ("st", 8, True): 1,
        ("st", 2, False): 1,
        ("generic", 0, False): 1,
    }


UNLIKE_HOST = (
    "sqrt.approx.f32 %f1, %f2;",
    "rcp.approx.ftz.f32 %f1, %f2;",
    "div.full.f32 %f1, %f2, %f3;",
    "@%p1 add.rn.ftz.f32 %f1, %f2, %f3;",
    "add.f32 %f1, %f2, %f3;",
    "mul.rz.f64 %fd1, %fd2, %fd3;",
    "fma.rm.f32 %f1, %f2, %f3, %f4;",
    "mad.f32 %f1, %f2, %f3, %f4;",
    "add.rn.sat.f32 %f1, %f2, %f3;",
    "cvt.rzi.s32.f32 %r1, %f1;",
    "cvt.rni.f32.f32 %f1, %f1;",
    "cvt.rz.f32.f64 %f1, %fd1;",
    "min.f32 %f1, %f2, %f3;",
    "@!%p12 max.NaN.f64 %fd1, %fd2, %fd3;",
    "atom.global.add.f32 %f1, [%rd1], %f2;",
    "red.global.add.u32 [%rd1], 1;",
)
LIKE_HOST = (
    "add.rn.f32 %f1, %f2, %f3;",
    "@%p1 fma.rn.f64 %fd1, %fd2, %fd3, %fd4;",
    "sqrt.rn.f32 %f1, %f2;",
    "div.rn.f64 %fd1, %fd2, %fd3;",
    "cvt.rn.f32.f64 %f1, %fd1;",
    "cvt.f64.f32 %fd1, %f1;",
    "max.s64 %rd1, %rd2, %rd3;",
    "add.s32 %r1, %r2, %r3;",
    "mad.lo.s32 %r1, %r2, %r3, %r4;",
    "abs.f32 %f1, %f2;",
    "setp.gt.f32 %p1, %f1, %f2;",
    "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];",
    "$L__BB0_1:",
)


@pytest.mark.parametrize("line", UNLIKE_HOST)
def test_an_instruction_that_may_part_from_the_host_is_found(check_ptx: Any, line: str) -> None:
    ptx = "\n".join(f"\t{text}" for text in (*LIKE_HOST, line))
    opcode = next(word for word in line.split() if not word.startswith("@"))
    assert check_ptx.unlike_host(ptx) == {opcode: 1}


def test_what_the_kernels_compute_with_is_as_on_the_host(check_ptx: Any) -> None:
    assert check_ptx.unlike_host("\n".join(f"\t{text}" for text in LIKE_HOST)) == {}


@pytest.mark.slow
def test_the_kernels_of_perturb_and_of_row_norms_pass_on_one_architecture() -> None:
    if "CUDACXX" not in os.environ and shutil.which("nvcc") is None:
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail("FAIL_WITHOUT_CUDA=1. NOT TESTED here: no nvcc")
        pytest.skip("NOT TESTED here: no nvcc")
    command = [
        sys.executable,
        str(SCRIPT),
        "--sources",
        "perturb",
        "rows",
        "--architectures",
        "90",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
