"""The forward pass equals Hugging Face's, however the tokens are cut into calls."""

from pathlib import Path

import pytest
import torch

from shared.linear import DenseMatrix
from shared.models import load
from shared.transformer import Transformer

IDS = torch.tensor([5, 17, 3, 99, 42, 7, 8, 200, 31, 12, 64, 9])


def logits_of(model: Transformer, ids: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    """Logits at every position, computing the tokens in pieces of the given sizes."""
    cache = model.new_cache(4)
    return torch.cat([model.logits(model.forward(piece, [cache], [len(piece)])) for piece in ids.split(pieces)])


def hugging_face(directory: Path, dtype: torch.dtype) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 1, 5], [11, 1]])
def test_logits_equal_hugging_face(tiny_model: Path, pieces: list[int]) -> None:
    ours = load(str(tiny_model), dtype="float32", quiet=True).transformer
    with torch.inference_mode():
        theirs = hugging_face(tiny_model, torch.float32)(IDS[None]).logits[0]
    assert torch.allclose(logits_of(ours, IDS, pieces), theirs, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_equals_generate_token_for_token(tiny_model: Path, dtype: str) -> None:
    ours = load(str(tiny_model), dtype=dtype, quiet=True).transformer
    theirs = hugging_face(tiny_model, getattr(torch, dtype))
    expected = theirs.generate(IDS[None], max_new_tokens=40, min_new_tokens=40, do_sample=False, pad_token_id=0)[0]
    expected = expected[len(IDS) :].tolist()
    cache, token, got = ours.new_cache(), IDS, []
    for _ in range(40):
        hidden = ours.forward(token, [cache], [len(token)])
        logits = ours.logits(hidden[-1:])[0].clone()
        logits[2] = -torch.inf  # min_new_tokens: generate may not end early, so neither do we
        got.append(int(logits.argmax()))
        token = torch.tensor(got[-1:])
    assert got == expected


def test_sequences_in_one_batch_do_not_touch_each_other(tiny_model: Path) -> None:
    model = load(str(tiny_model), dtype="float32", quiet=True).transformer
    alone = [logits_of(model, ids, [len(ids)]) for ids in (IDS, IDS[3:], IDS[:1])]
    caches = [model.new_cache() for _ in alone]
    together = model.logits(model.forward(torch.cat([IDS, IDS[3:], IDS[:1]]), caches, [12, 9, 1]))
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_a_copied_prefix_goes_on_as_the_original(tiny_llama: Path) -> None:
    model = load(str(tiny_llama), dtype="float32", quiet=True).transformer
    whole = logits_of(model, IDS, [12])
    cache = model.new_cache()
    model.forward(IDS, [cache], [12])
    copy = cache.copy_prefix(7, room=5)
    again = model.logits(model.forward(IDS[7:], [copy], [5]))
    assert torch.allclose(again, whole[7:], atol=1e-4)
    assert cache.length == 12


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
)
def test_rope_scaling_equals_hugging_face(tiny_llama: Path, tmp_path: Path, scaling: dict) -> None:
    import json

    config = json.loads((tiny_llama / "config.json").read_text())
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny_llama / name)
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
    ours = load(str(tmp_path), dtype="float32", quiet=True).transformer
    with torch.inference_mode():
        theirs = hugging_face(tmp_path, torch.float32)(IDS[None]).logits[0]
    assert torch.allclose(logits_of(ours, IDS, [12]), theirs, atol=2e-4)
    plain = load(str(tiny_llama), dtype="float32", quiet=True).transformer
    assert not torch.allclose(logits_of(plain, IDS, [12]), theirs, atol=1e-2)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("kernel", ["native", "torch", "dequantize"])
def test_quantised_models_stay_close(
    tiny_model: Path, dtype: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared import linear, native

    if kernel == "dequantize":  # what GPUs take: the packed layouts exist on the CPU only
        monkeypatch.setattr(linear, "choose_kernel", lambda *_: "dequantize")
    if kernel == "torch":
        monkeypatch.setattr(native, "library", lambda: (None, "switched off by the test"))
    rounded = load(str(tiny_model), dtype=dtype, quiet=True).transformer
    got = logits_of(rounded, IDS, [10, 1, 1])
    # The same rounded weights, multiplied in float32: what is left is the kernels' own rounding of the activations.
    rounded.fused = False
    for layer in rounded.layers:
        for name in ("qkv", "output", "gate_up", "down"):
            matrix = getattr(layer, name)
            setattr(layer, name, DenseMatrix(matrix.dequantize(), matrix.bias))
    exact = logits_of(rounded, IDS, [12])
    assert torch.cosine_similarity(got, exact, dim=-1).min() > 0.99
