"""The compiled kernels against the same sums in PyTorch: products, a whole decoding step, and life without a compiler."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shared import native
from shared.config import settings
from shared.linear import QuantizedMatrix
from shared.lora import FUSED, Adapter
from shared.model_config import ModelConfig
from shared.native import fused
from shared.quantization import quantize_q4_1, quantize_q8_0
from shared.transformer import Layer, Transformer

QUANTIZE = {"q4_1": quantize_q4_1, "q8_0": quantize_q8_0}
needs_compiler = pytest.mark.skipif(native.library()[0] is None, reason=native.library()[1])


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


def quantized(kind: str, outputs: int, inputs: int, generator: torch.Generator, bias: bool = False) -> QuantizedMatrix:
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    return QuantizedMatrix(
        kind, QUANTIZE[kind](weight), 0.1 * torch.randn(outputs, generator=generator) if bias else None
    )


def rounded(x: Tensor) -> Tensor:
    """What the native kernels make of x: int8 in groups of 32, written with PyTorch."""
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scale.clamp_min(1e-30)).round() * scale).flatten(-2)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# --- products ---------------------------------------------------------------------------------------------------


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


# --- a whole step -----------------------------------------------------------------------------------------------

SHAPES = {  # heads, kv heads, head dim
    "llama": (6, 2, 16),
    "qwen2": (4, 4, 32),
    "qwen3": (3, 1, 64),
}


def tiny(model_type: str, kind: str) -> Transformer:
    """A random model whose numbers have the size of a trained one's."""
    heads, kv_heads, head_dim = SHAPES[model_type]
    hidden, mlp, g = 96, 160, torch.Generator().manual_seed(7)
    config = ModelConfig(
        model_type=model_type, layers=3, hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, mlp=mlp,
        vocabulary=200, context=128, norm_eps=1e-5, rope_theta=10_000.0, tied_head=True, eos=(0,),
    )  # fmt: skip

    def norm(size: int) -> Tensor:
        return 1 + 0.1 * torch.randn(size, generator=g)

    layers = [
        Layer(
            attention_norm=norm(hidden),
            qkv=quantized(kind, (heads + 2 * kv_heads) * head_dim, hidden, g, bias=model_type == "qwen2"),
            output=quantized(kind, hidden, heads * head_dim, g),
            mlp_norm=norm(hidden),
            gate_up=quantized(kind, 2 * mlp, hidden, g),
            down=quantized(kind, hidden, mlp, g),
            query_norm=norm(head_dim) if model_type == "qwen3" else None,
            key_norm=norm(head_dim) if model_type == "qwen3" else None,
        )
        for _ in range(config.layers)
    ]
    embedding = quantized("q8_0", config.vocabulary, hidden, g)
    return Transformer(config, embedding, layers, norm(hidden), embedding, torch.float32)


def tiny_adapter(model: Transformer) -> Adapter:
    """Ranks of no round number, and matrices left out, as adapters have them."""
    g = torch.Generator().manual_seed(8)
    layers = []
    for index, layer in enumerate(model.layers):
        part = {}
        for name in list(FUSED)[index:]:
            matrix = getattr(layer, name)
            rank = 3 + index
            a = torch.randn(rank, matrix.in_features, generator=g) / matrix.in_features**0.5
            part[name] = (a, 0.3 * torch.randn(matrix.out_features, rank, generator=g))
        layers.append(part)
    return Adapter("tiny", 3, layers)


def decode(model: Transformer, rows: int, adapter: Adapter | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Decode four tokens of `rows` sequences of different lengths by the loop, and each step fused on copies as well.

    Returns the final hidden states and the appended keys and values, flat, of every step: (fused, loop).
    """
    g = torch.Generator().manual_seed(rows)
    caches = [model.new_cache() for _ in range(rows)]
    model.fused = False
    for row, cache in enumerate(caches):
        count = 1 + 11 * row % 40
        model.forward(torch.randint(0, 200, (count,), generator=g), [cache], [count], adapter)
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for step in range(4):
        ids = torch.randint(0, 200, (rows,), generator=g)
        # Without room for the new token every other time, so that the copy has to grow.
        copies = [cache.copy_prefix(cache.length, room=step % 2) for cache in caches]
        for fuse, mine, results in ((True, copies, found), (False, caches, expected)):
            model.fused = fuse
            results.append(model.forward(ids, mine, [1] * rows, adapter))
            new = [torch.cat([c.keys[:, :, c.length - 1], c.values[:, :, c.length - 1]]).flatten() for c in mine]
            results.append(torch.stack(new))
        assert [c.length for c in copies] == [c.length for c in caches]
    return found, expected


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Equal but for the order of sums, 1e-7. Once in a while that rounds an activation to the next int8, and the rest of
    that row then differs by up to a few per cent: so the median row is held to the one, the worst to the other.
    """
    errors = torch.cat([(a - b).norm(dim=-1) / b.norm(dim=-1) for a, b in zip(found, expected, strict=True)])
    assert float(errors.median()) < 3e-6
    assert float(errors.max()) < 0.05


@needs_compiler
@pytest.mark.parametrize("kind", QUANTIZE)
@pytest.mark.parametrize("model_type", SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_fused_step_is_the_loop(kind, model_type, rows, with_adapter, threads):
    model = tiny(model_type, kind)
    assert fused.supports(model)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same(*decode(model, rows, tiny_adapter(model) if with_adapter else None))
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_adapter_changes_the_step_and_a_new_one_is_not_mistaken_for_an_old_one():
    model = tiny("llama", "q4_1")
    plain = decode(model, 3)[0]
    for _ in range(20):  # dropped adapters: Python reuses their ids
        adapter = tiny_adapter(model)
        adapter.layers[0]["qkv"] = (adapter.layers[0]["qkv"][0], torch.randn_like(adapter.layers[0]["qkv"][1]))
        found, expected = decode(model, 3, adapter)
        assert_same(found, expected)
        assert relative(found[0], plain[0]) > 0.05


@needs_compiler
def test_only_single_tokens_of_at_most_eight_sequences_are_fused(monkeypatch):
    model = tiny("llama", "q4_1")
    calls = []
    monkeypatch.setattr(fused.FusedDecoder, "step", lambda self, x, caches, adapter: calls.append(len(caches)) or x)
    caches = [model.new_cache() for _ in range(9)]
    model.forward(torch.arange(9), caches, [1] * 9)
    model.forward(torch.arange(3), caches[:2], [2, 1])
    assert calls == []
    model.forward(torch.arange(8), caches[:8], [1] * 8)
    assert calls == [8]


@needs_compiler
def test_a_subclass_switches_it_off():
    class Watcher(Transformer):
        fused = False
        seen = 0

        def attend(self, index: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self.seen += 1
            return super().attend(index, queries, keys, values)

    model = tiny("llama", "q4_1")
    watcher = object.__new__(Watcher)
    watcher.__dict__.update(model.__dict__)
    watcher.forward(torch.arange(1), [watcher.new_cache()], [1])
    assert watcher.seen == 3


@needs_compiler
def test_cache_grows_and_a_full_context_is_refused():
    model = tiny("llama", "q4_1")
    cache = model.new_cache(capacity=2)
    for token in range(model.config.context):
        model.forward(torch.tensor([token]), [cache], [1])
    assert cache.length == model.config.context
    with pytest.raises(AssertionError, match="context is full"):
        model.forward(torch.tensor([1]), [cache], [1])
    with pytest.raises(AssertionError, match="twice"):
        other = model.new_cache()
        model.forward(torch.tensor([1, 2]), [other, other], [1, 1])


# --- compilers --------------------------------------------------------------------------------------------------


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
def test_two_processes_building_at_once(fresh_library):
    code = "from shared import native; lib, reason = native.library(); assert lib is not None, reason"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    files = [path.name for path in (fresh_library / "native").iterdir()]
    assert len(files) == 1, files
    assert files[0].startswith("kernels-")


# --- the real model ---------------------------------------------------------------------------------------------


@pytest.mark.real
@needs_compiler
def test_real_model_decodes_the_same_text_fused_and_not():
    """Greedy text may part where two tokens are nearly tied, because int8 rounding turns a difference of 1e-7 in a sum
    into 1 % of a hidden state: so each choice of the fused step is scored by the loop on the same prefix, and must be
    its favourite or within a small margin of it.
    """
    from shared.models import load

    loaded = load("smollm2-135m", dtype="int4", quiet=True)
    model = loaded.transformer
    agree = total = 0
    for prompt in ("The capital of France is", "def fibonacci(n):", "Once upon a time, a small robot"):
        ids = torch.tensor(loaded.tokenizer.encode(prompt))
        fast, slow = model.new_cache(), model.new_cache()
        model.fused = True
        token = model.logits(model.forward(ids, [fast], [len(ids)])[-1:]).argmax(-1)
        model.forward(ids, [slow], [len(ids)])
        for _ in range(64):
            model.fused = True
            mine = model.logits(model.forward(token, [fast], [1]))[0]
            model.fused = False
            theirs = model.logits(model.forward(token, [slow], [1]))[0]
            assert relative(mine, theirs) < 0.05
            token = mine.argmax(-1, keepdim=True)
            agree, total = agree + int(token == theirs.argmax()), total + 1
            assert float(theirs.max() - theirs[token]) < 0.5, "not a near tie"
    assert agree / total > 0.95
