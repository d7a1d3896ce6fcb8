"""auditwheel's verdict on a wheel, and ours: the platform tag it earns, and no library inside but the three of this package.

auditwheel would copy LibTorch into the wheel; everything of PyTorch and CUDA is named as coming from the environment.
It passes over what it does not know, so what is inside is looked at afterwards.
    python tools/repair_wheel.py RAW.whl FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

# Of the installed PyTorch, of the system, and of this wheel itself (the CUDA kernels name the operators).
OUTSIDE = (
    *(
        "libtorch.so",
        "libtorch_cpu.so",
        "libtorch_cuda.so",
        "libtorch_python.so",
        "libc10.so",
        "libc10_cuda.so",
    ),
    *("libgomp*", "libcuda.so.*", "libcudart.so.*", "libtorch_ssam.so"),
)
OURS = {"torch_ssam/lib/libtorch_ssam.so", "torch_ssam/lib/libtorch_ssam_cuda.so"}


def libraries(wheel: Path) -> dict[str, tuple[int, int]]:
    """Each shared object in the wheel: its size, and its share of the wheel's own size."""
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if ".so" in Path(m.filename).name]
    return {m.filename: (m.file_size, m.compress_size) for m in members}


def main() -> None:
    raw, folder = Path(sys.argv[1]), sys.argv[2]
    auditwheel = [sys.executable, "-m", "auditwheel"]
    excluded = [part for name in OUTSIDE for part in ("--exclude", name)]
    subprocess.run([*auditwheel, "repair", *excluded, "--wheel-dir", folder, str(raw)], check=True)
    (wheel,) = Path(folder).glob("*.whl")
    subprocess.run([*auditwheel, "show", str(wheel)], check=True)
    if "manylinux" not in wheel.name:
        raise SystemExit(f"{wheel.name}: auditwheel gave it no manylinux tag")
    found = libraries(wheel)
    foreign = [f for f in found if f not in OURS and not f.startswith("torch_ssam/_C.")]
    if foreign:
        raise SystemExit(
            f"{wheel.name} holds libraries that are not this package's own: {', '.join(foreign)}"
        )
    if "torch_ssam/lib/libtorch_ssam.so" not in found or len(found) < 2:
        raise SystemExit(
            f"{wheel.name} lacks the operators or the module _C; it holds {', '.join(found) or 'nothing'}"
        )
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    for name, (size, packed) in found.items():
        print(f"  {name}: {size / 1e6:.1f} MB, {packed / 1e6:.1f} MB of the wheel")
    if "torch_ssam/lib/libtorch_ssam_cuda.so" not in found:
        print("  without CUDA kernels: no nvcc >= 12.8 was found, or FORCE_CUDA=0")


if __name__ == "__main__":
    main()
