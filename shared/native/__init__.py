"""Build and bind matvec.c: one second with the system's C compiler, once per machine; without one, PyTorch's kernels.

The shared library lands in the cache directory, named by a hash of source, compiler flags and CPU, so an updated
source or a home directory shared between machines never meets a stale build.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from shared.config import settings

SOURCE = Path(__file__).with_name("matvec.c")
# -ffast-math only lets sums be reordered here; the C code has no NaN or infinity logic to break.
FLAGS = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-shared"]


@lru_cache(maxsize=1)
def library() -> tuple[ctypes.CDLL | None, str]:
    """Return (library, reason). The library is None when it cannot be used here; the reason says why, or how it was built."""
    if platform.machine() not in {"x86_64", "AMD64"} or torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}:
        return None, f"the native kernel is for x86 with AVX2, this is {platform.machine()}"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None, "no C compiler (cc) to build the native kernel with"
    try:
        path = _build(compiler)
        lib = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        return None, f"the native kernel did not build: {detail.strip().splitlines()[-1]}"
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    for function in (lib.matvec_q4_1, lib.matvec_q8_0):
        function.argtypes = [pointer, pointer, pointer, integer, integer, integer, pointer, pointer, pointer]
        function.restype = None
    return lib, f"native AVX2 kernel built with {Path(compiler).name}"


def matvec(kind: str, blocks: Tensor, x: Tensor) -> Tensor:
    """Return x @ W.T, float32 [rows, n], for float32 x [rows, columns] and contiguous uint8 blocks of W [n, columns].

    kind: "q4_1" or "q8_0". `library()` must have returned a library.
    """
    lib, reason = library()
    assert lib is not None, reason
    rows, columns = x.shape
    n, groups = blocks.shape[0], columns // 32
    x = x.contiguous()
    y = torch.empty(rows, n)
    quantized = torch.empty(rows * columns, dtype=torch.int8)
    scratch = torch.empty(2, rows * groups)
    function = lib.matvec_q4_1 if kind == "q4_1" else lib.matvec_q8_0
    function(
        blocks.data_ptr(), x.data_ptr(), y.data_ptr(), n, groups, rows,
        quantized.data_ptr(), scratch.data_ptr(), scratch[1].data_ptr(),
    )  # fmt: skip
    return y


def _build(compiler: str) -> Path:
    flags = [*FLAGS]
    cpu = _cpu_name()
    key = hashlib.sha256("\0".join([SOURCE.read_text(), compiler, *flags, cpu]).encode()).hexdigest()[:16]
    target = settings().llm_roadmap_home / "native" / f"matvec-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # A private file and an atomic rename: two processes may build at once, and a kill leaves no half library.
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(handle)
    try:
        command = [compiler, *flags, str(SOURCE), "-o", temporary, "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return platform.processor()
