"""The compiled products against the same sums in PyTorch, and life without (a good) compiler."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_quantized import QUANTIZE, assert_same, decode, needs_compiler, quantized, relative, tiny
from torch import Tensor

from shared import native
from shared.config import settings
from shared.linear import QuantizedMatrix
from shared.native import fused


@pytest.fixture
def fresh_library(monkeypatch, tmp_path):
    """Forget the library this process has bound, build into an empty home, and restore both afterwards."""
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path))
    settings.cache_clear()
    native.library.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    settings.cache_clear()
    native.library.cache_clear()


def rounded(x: Tensor) -> Tensor:
    """What the native kernels make of x: int8 in groups of 32, written with PyTorch."""
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scale.clamp_min(1e-30)).round() * scale).flatten(-2)


@pytest.mark.parametrize("kind", QUANTIZE)
@pytest.mark.parametrize("outputs", [1, 8, 13, 64])
def test_tiles_are_a_pure_reordering(kind, outputs):
    blocks = QUANTIZE[kind](torch.randn(outputs, 96))
    tiles = native.tile(kind, blocks)
    assert tiles.shape[0] == -(-outputs // 8)
    assert torch.equal(native.untile(kind, tiles)[:outputs], blocks)


@needs_compiler
@pytest.mark.parametrize("kind", QUANTIZE)
@pytest.mark.parametrize(("outputs", "inputs"), [(8, 32), (13, 96), (200, 576)])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 21])
def test_matvec_is_the_product_with_rounded_activations(kind, outputs, inputs, rows):
    generator = torch.Generator().manual_seed(rows)
    matrix = quantized(kind, outputs, inputs, generator)
    x = torch.randn(rows, inputs, generator=generator)
    x[0, 32:64] = 0  # a group without a scale
    y = matrix(x)
    assert relative(y, rounded(x) @ matrix.dequantize().T) < 1e-3  # ties round differently once in a while
    assert relative(y, x @ matrix.dequantize().T) < 0.02


@needs_compiler
@pytest.mark.parametrize("kind", QUANTIZE)
def test_extreme_weights_and_activations_do_not_saturate(kind):
    weight = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0).repeat(16, 1)
    matrix = QuantizedMatrix(kind, QUANTIZE[kind](weight))
    for x in (torch.full((1, 64), 1e4), -weight[:1], weight[:1], torch.zeros(1, 64)):
        torch.testing.assert_close(matrix(x), x @ matrix.dequantize().T, rtol=1e-3, atol=1e-2 * float(x.abs().max()))


@needs_compiler
@pytest.mark.parametrize("kind", QUANTIZE)
def test_rows_and_dequantize_read_tiles_like_blocks(kind):
    weight = torch.randn(21, 64)
    blocks = QUANTIZE[kind](weight)
    matrix = QuantizedMatrix(kind, blocks)
    assert matrix.tiles is not None
    assert matrix.dequantize().shape == (21, 64)
    assert relative(matrix.dequantize(), weight) < 0.2
    ids = torch.tensor([20, 0, 7, 8, 7])
    assert torch.equal(matrix.rows(ids), matrix.dequantize()[ids])


def test_without_a_compiler_the_step_still_gives_the_right_result(monkeypatch, fresh_library):
    with_compiler = tiny("qwen3", "q4_1")
    expected = decode(with_compiler, 3)[0]
    native.library.cache_clear()
    monkeypatch.setenv("PATH", "")
    library, reason = native.library()
    assert library is None
    assert "no C compiler" in reason or "x86" in reason
    model = tiny("qwen3", "q4_1")
    assert {m.kernel for layer in model.layers for m in (layer.qkv, layer.down)} <= {"torch int4pack", "dequantize"}
    assert not fused.supports(model)
    for a, b in zip(decode(model, 3)[0], expected, strict=True):
        assert relative(a, b) < 0.05  # bfloat16 activations there, int8 here


@pytest.mark.parametrize(("kind", "outputs"), [("q4_1", 64), ("q4_1", 13), ("q8_0", 64), ("q8_0", 13)])
def test_torch_kernels_agree_with_the_dequantised_product(monkeypatch, fresh_library, kind, outputs):
    monkeypatch.setenv("PATH", "")
    matrix = quantized(kind, outputs, 96, torch.Generator().manual_seed(1))
    assert matrix.kernel != "native"
    x = torch.randn(3, 96)
    assert relative(matrix(x), x @ matrix.dequantize().T) < 0.02


def fake_compiler(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "cc").chmod(0o755)


@needs_compiler
def test_a_compiler_without_openmp_gives_one_thread(monkeypatch, fresh_library):
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    script = f'for flag; do [ "$flag" = -fopenmp ] && {{ echo unsupported >&2; exit 1; }}; done\nexec {real} "$@"'
    fake_compiler(fresh_library / "bin", script)
    monkeypatch.setenv("PATH", f"{fresh_library / 'bin'}:/usr/bin:/bin")
    assert "one thread" in native.library()[1]
    model = tiny("llama", "q8_0")
    assert_same(*decode(model, 3))


def test_a_broken_compiler_is_reported(monkeypatch, fresh_library):
    fake_compiler(fresh_library / "bin", "echo 'ld: cannot find -lc' >&2; exit 1")
    monkeypatch.setenv("PATH", str(fresh_library / "bin"))
    library, reason = native.library()
    assert library is None
    assert "did not build" in reason or "x86" in reason


@needs_compiler
def test_loading_leaves_subnormal_numbers_alone():
    code = "from shared import native; native.library(); assert 5e-324 * 1.0 > 0 and 1e-310 / 10 > 0"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_compiler
def test_two_processes_building_at_once(fresh_library):
    code = "from shared import native; lib, reason = native.library(); assert lib is not None, reason"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    files = [path.name for path in (fresh_library / "native").iterdir()]
    assert len(files) == 1, files
    assert files[0].startswith("kernels-")
