"""The inspector sees the same model: its logits, maps and ablations equal Transformer's and Hugging Face's.

python -m pytest tests/step1/test_inspector.py
"""

from pathlib import Path

import pytest
import torch

from shared.models import LoadedModel, load
from step1_foundations.attention import LABELS, attention, head_label, probe_scores
from step1_foundations.attribution import ablate, lens, variants
from step1_foundations.inspector import Inspector
from step1_foundations.next_token import logits_of

IDS = [5, 17, 3, 99, 42, 7, 8, 200, 31, 12]


@pytest.fixture
def model(tiny_model: Path) -> LoadedModel:
    return load(str(tiny_model), dtype="float32", quiet=True)


@pytest.mark.parametrize("ids", [IDS, IDS[:1]])
def test_logits_and_maps_equal_hugging_face(model: LoadedModel, ids: list[int]) -> None:
    from transformers import AutoModelForCausalLM

    inspector = Inspector.of(model.transformer)
    recording = inspector.run(ids)
    logits = inspector.read_out(recording.residuals[-1])
    assert torch.allclose(logits, logits_of(model, ids, last=len(ids)), atol=1e-4)

    theirs = AutoModelForCausalLM.from_pretrained(model.directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        out = theirs(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    assert torch.allclose(logits, out.logits[0], atol=2e-4)
    assert torch.allclose(recording.maps, torch.stack(out.attentions)[:, 0], atol=1e-5)
    # Hugging Face's last hidden state is already normed; the ones before are the raw residual stream.
    assert torch.allclose(recording.residuals[:-1], torch.stack(out.hidden_states[:-1])[:, 0], atol=1e-4)


def test_rows_sum_to_one_and_nobody_sees_the_future(model: LoadedModel) -> None:
    maps = Inspector.of(model.transformer).run(IDS).maps
    assert (maps.sum(-1) - 1).abs().max() < 1e-5
    assert maps.triu(1).count_nonzero() == 0
    report = attention(model, IDS)
    assert report.row_sum_error < 1e-5
    assert [len(row) for row in report.maps[0][0]] == list(range(1, len(IDS) + 1))
    assert torch.allclose(torch.tensor(report.maps[2][3][-1]), maps[2, 3, -1], atol=1e-5)


def test_the_weights_are_shared_not_copied(model: LoadedModel) -> None:
    inspector = Inspector.of(model.transformer)
    assert inspector.layers is model.transformer.layers
    assert inspector.embedding is model.transformer.embedding


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("ids", [IDS, IDS[:1]])
def test_other_dtypes_agree_with_the_normal_forward_pass(tiny_model: Path, dtype: str, ids: list[int]) -> None:
    loaded = load(str(tiny_model), dtype=dtype, quiet=True)
    inspector = Inspector.of(loaded.transformer)
    logits = inspector.read_out(inspector.run(ids).residuals[-1])[-1]
    expected = logits_of(loaded, ids)[-1]
    # Rounding of activations amplifies the softmax's last bit; the distributions stay close all the same.
    assert (logits.softmax(-1) - expected.softmax(-1)).abs().sum() < 0.1


def test_an_adapter_is_part_of_what_is_inspected(tiny_llama: Path) -> None:
    from shared.lora import Adapter

    loaded = load(str(tiny_llama), dtype="float32", quiet=True)
    config, generator = loaded.config, torch.Generator().manual_seed(0)
    width = config.heads * config.head_dim
    sizes = {
        "qkv": (config.hidden, width + 2 * config.kv_heads * config.head_dim),
        "output": (width, config.hidden),
        "down": (config.mlp, config.hidden),
    }
    layer = {
        name: (torch.randn(4, i, generator=generator) / 8, torch.randn(o, 4, generator=generator) / 8)
        for name, (i, o) in sizes.items()
    }
    base = logits_of(loaded, IDS)
    loaded.adapters["tuned"] = Adapter(4, [layer] * config.layers)
    inspector = Inspector.of_model(loaded)
    got = inspector.read_out(inspector.run(IDS).residuals[-1])[-1:]
    assert torch.allclose(got, logits_of(loaded, IDS), atol=1e-4)
    assert not torch.allclose(got, base, atol=0.1)
    # The restart takes the adapter along as well.
    assert torch.allclose(torch.tensor(ablate(loaded, IDS, "the").change), full_ablation(loaded, "the"), atol=1e-3)


def full_ablation(model: LoadedModel, word: str) -> torch.Tensor:
    """The ablation map the slow way: a whole recorded pass per part, from the first layer."""
    report = ablate(model, IDS, word)
    text, target = [*IDS, *report.target_ids[:-1]], torch.tensor(report.target_ids)
    inspector = Inspector.of_model(model)

    def logprob(heads: set[tuple[int, int]], mlps: set[int]) -> float:
        logits = inspector.read_out(inspector.run(text, heads, mlps).residuals[-1][-len(target) :])
        return float(logits.log_softmax(-1)[torch.arange(len(target)), target].sum())

    whole = logprob(set(), set())
    assert whole == pytest.approx(report.logprob, abs=1e-4)
    return torch.tensor(
        [
            [logprob({(layer, head)}, set()) - whole for head in range(model.config.heads)]
            + [logprob(set(), {layer}) - whole]
            for layer in range(model.config.layers)
        ]
    )


@pytest.mark.parametrize("word", ["the", "zzqy"])  # one token, and several
def test_ablation_by_restart_equals_full_recomputation(model: LoadedModel, word: str) -> None:
    change = torch.tensor(ablate(model, IDS, word).change)
    assert torch.allclose(change, full_ablation(model, word), atol=1e-3)
    assert change.abs().max() > 0.05  # not a comparison of zeros


def test_ablating_nothing_changes_nothing(model: LoadedModel) -> None:
    inspector = Inspector.of(model.transformer)
    recording = inspector.run(IDS)
    assert torch.equal(recording.residuals, inspector.run(IDS, set(), set()).residuals)
    for index in range(model.config.layers):
        intact = variants(inspector, recording, index)[0]
        assert torch.allclose(intact, recording.residuals[index + 1], atol=1e-4)


def test_all_off_in_one_layer_is_the_layer_skipped(model: LoadedModel) -> None:
    heads = {(1, head) for head in range(model.config.heads)}
    residuals = Inspector.of(model.transformer).run(IDS, heads, {1}).residuals
    assert torch.equal(residuals[2], residuals[1])


def test_lens_ends_in_the_models_own_distribution(model: LoadedModel) -> None:
    report = lens(model, IDS)
    expected = logits_of(model, IDS, last=len(IDS)).softmax(-1)
    assert len(report.cells) == model.config.layers + 1
    for cell, row in zip(report.cells[-1], expected, strict=True):
        assert cell.id == int(row.argmax())
        assert cell.answer_rank == 1
        assert cell.probability == cell.answer_probability == pytest.approx(float(row.max()), abs=1e-4)
    first = report.cells[0][0]  # the embedding read out directly
    inspector = Inspector.of(model.transformer)
    raw = inspector.read_out(inspector.embed(torch.tensor(IDS[:1])))[0]
    assert first.id == int(raw.argmax())
    answer = report.cells[-1][0].id
    assert first.answer_rank == int((raw > raw[answer]).sum()) + 1


def test_scores_recognise_textbook_heads() -> None:
    period = 6
    size = 2 * period
    i = torch.arange(size)
    places = {
        "previous": (i - 1).clamp_min(0),
        "sink": torch.zeros_like(i),
        "induction": (i - period + 1).clamp_min(0),
        "itself": i,
    }
    maps = torch.zeros(1, 5, size, size)
    for head, place in enumerate(places[name] for name in LABELS):
        maps[0, head, i, place] = 1
    maps[0, 4] = torch.ones(size, size).tril() / (i + 1)[:, None]
    scores = probe_scores(maps, period)[0]
    assert [head_label(row) for row in scores] == [*LABELS, "mixed"]
    assert torch.equal(scores[:4], torch.eye(4))


def test_every_head_gets_a_name_and_scores_add_up_to_at_most_one(model: LoadedModel) -> None:
    heads = attention(model, IDS).heads
    assert [(h.layer, h.head) for h in heads] == [(a, b) for a in range(3) for b in range(4)]
    assert all(h.previous + h.sink + h.induction + h.itself <= 1 + 1e-5 for h in heads)


@pytest.mark.real
def test_smollm2_has_induction_and_previous_token_heads() -> None:
    loaded = load("smollm2-135m", quiet=True)
    report = attention(loaded, loaded.tokenizer.encode("The cat sat on the mat"))
    assert {"previous", "induction", "sink"} <= {head.label for head in report.heads}
    assert max(head.induction for head in report.heads) > 0.8
    assert report.row_sum_error < 1e-5


@pytest.mark.real
def test_smollm2_needs_few_parts_to_say_paris() -> None:
    loaded = load("smollm2-135m", quiet=True)
    ids = loaded.tokenizer.encode("The capital of France is")
    report = ablate(loaded, ids, "Paris")
    assert report.target == " Paris"
    assert report.logprob > -1
    assert report.change[0][-1] < -2  # the first MLP: everything passes through it
    said = lens(loaded, ids)
    assert said.answers[-1] == " Paris"
    assert said.cells[0][-1].answer_rank > 100
