"""Build and bind the C kernels: two seconds with the system's C compiler, once per machine; without one, PyTorch's.

    matvec.c   quantised matrix × a few rows        kernels.h   the arithmetic of both
    decode.c   one whole decoding step, bound by fused.py

The shared library lands in the cache directory, named by a hash of sources, compiler flags and CPU, so an updated
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
import torch.nn.functional as F
from torch import Tensor

from shared.config import settings

FOLDER = Path(__file__).parent
SOURCES = [FOLDER / "matvec.c", FOLDER / "decode.c"]
# -ffast-math lets sums be reordered; the C code has no NaN logic to break and keeps away from infinities.
FLAGS = ["-O3", "-march=native", "-ffast-math", "-fPIC"]
KINDS = {"q4_1": 0, "q8_0": 1}  # as in kernels.h
TILE = 8  # outputs stored together


class CMatrix(ctypes.Structure):
    """`matrix` of kernels.h."""

    _fields_ = [
        ("tiles", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("groups", ctypes.c_int32),
    ]


@lru_cache(maxsize=1)
def library() -> tuple[ctypes.CDLL | None, str]:
    """Return (library, reason).

    The library is None when it cannot be used here; the reason says why, or how it was built.
    """
    vectors = torch.backends.cpu.get_cpu_capability()
    if platform.machine() not in {"x86_64", "AMD64"} or vectors not in {"AVX2", "AVX512"}:
        return None, f"the native kernel is for x86 with AVX2, this is {platform.machine()}"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None, "no C compiler (cc) to build the native kernel with"
    try:
        try:
            path, threads = _build(compiler, ["-fopenmp"]), "OpenMP"
        except subprocess.CalledProcessError:
            path, threads = _build(compiler, []), "one thread: the compiler has no OpenMP"  # Apple's clang
        lib = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip()
        return None, f"the native kernel did not build: {detail.splitlines()[-1] if detail else compiler}"
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    lib.matvec.argtypes = [ctypes.POINTER(CMatrix), pointer, pointer, integer, integer, pointer, pointer, pointer]
    lib.matvec.restype = None
    lib.decode_workspace.argtypes = [pointer, pointer, pointer, integer, integer]
    lib.decode_workspace.restype = ctypes.c_int64
    lib.decode_step.argtypes = [pointer, pointer, pointer, integer, integer, pointer, pointer]
    lib.decode_step.restype = None
    return lib, f"native AVX2 kernel built with {Path(compiler).name}, {threads}"


def tile(kind: str, blocks: Tensor) -> Tensor:
    """Return blocks, uint8 [out, groups · bytes], in the kernels' order: uint8 [out/8 rounded up, groups, 8 · bytes].

    A pure reordering, undone by `untile`: the 4-byte words (Q4_1) or the scales and words (Q8_0) of 8 rows alternate.
    """
    blocks = F.pad(blocks, (0, 0, 0, -blocks.shape[0] % TILE)).contiguous()
    if kind == "q4_1":  # 5 words per group: d and m, then 4 words of nibbles
        words = blocks.view(torch.int32).unflatten(0, (-1, TILE)).unflatten(-1, (-1, 5))
        return words.permute(0, 2, 3, 1).flatten(2).contiguous().view(torch.uint8)
    halves = blocks.view(torch.int16).unflatten(0, (-1, TILE)).unflatten(-1, (-1, 17))
    scales = halves[..., 0].permute(0, 2, 1)
    values = halves[..., 1:].unflatten(-1, (8, 2)).permute(0, 2, 3, 1, 4).flatten(2)
    return torch.cat([scales, values], dim=-1).view(torch.uint8)


def untile(kind: str, tiles: Tensor) -> Tensor:
    """Return the blocks, uint8 [8 · tiles, groups · bytes], that `tile` ordered (with its rows of padding)."""
    if kind == "q4_1":
        words = tiles.view(torch.int32).unflatten(-1, (5, TILE))
        return words.permute(0, 3, 1, 2).flatten(2).flatten(0, 1).contiguous().view(torch.uint8)
    halves = tiles.view(torch.int16)
    scales = halves[..., :TILE].permute(0, 2, 1)[..., None]
    values = halves[..., TILE:].unflatten(-1, (8, TILE, 2)).permute(0, 3, 1, 2, 4).flatten(3)
    return torch.cat([scales, values], dim=-1).flatten(2).flatten(0, 1).view(torch.uint8)


def matvec(kind: str, tiles: Tensor, outputs: int, x: Tensor) -> Tensor:
    """Return x @ W.T, float32 [rows, outputs], for float32 x [rows, columns] and the tiles of W [outputs, columns].

    kind: "q4_1" or "q8_0". x is rounded to int8 in groups of 32. `library()` must have returned a library.
    """
    lib, reason = library()
    assert lib is not None, reason
    rows, columns = x.shape
    groups = tiles.shape[1]
    assert columns == groups * 32, "x does not fit the matrix"
    x = x.contiguous()
    y = torch.empty(rows, outputs)
    quantized = torch.empty(rows * columns, dtype=torch.int8)
    scratch = torch.empty(2, rows * groups)
    lib.matvec(
        CMatrix(tiles.data_ptr(), None, KINDS[kind], outputs, groups),
        x.data_ptr(), y.data_ptr(), rows, torch.get_num_threads(),
        quantized.data_ptr(), scratch.data_ptr(), scratch[1].data_ptr(),
    )  # fmt: skip
    return y


def _build(compiler: str, threading: list[str]) -> Path:
    flags = [*FLAGS, *threading]
    content = [path.read_text() for path in [*SOURCES, FOLDER / "kernels.h"]]
    key = hashlib.sha256("\0".join([*content, compiler, *flags, _cpu_name()]).encode()).hexdigest()[:16]
    target = settings().llm_roadmap_home / "native" / f"kernels-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # A private folder and an atomic rename: two processes may build at once, and a kill leaves no half library.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # Compiled and linked apart: linking with -ffast-math adds start-up code that makes the whole process, NumPy
        # included, flush subnormal numbers to zero.
        objects = [f"{path.stem}.o" for path in SOURCES]
        compiling = [compiler, *flags, "-c", *map(str, SOURCES)]
        linking = [compiler, "-shared", *threading, *objects, "-o", "kernels.so", "-lm"]
        for command in (compiling, linking):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd=folder)
        os.replace(Path(folder) / "kernels.so", target)
    return target


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return platform.processor()
