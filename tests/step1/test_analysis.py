"""Tokens, next-token distribution, embeddings and the load report, against computations done another way.

python -m pytest tests/step1/test_analysis.py
"""

import json
from pathlib import Path

import pytest
import torch

from shared.errors import UserError
from shared.models import LoadedModel, load
from shared.tokenizer import ChatTokenizer
from step1_foundations.embeddings import embed, embedding_matrix, pca
from step1_foundations.load_report import components, measure_load
from step1_foundations.next_token import entropy, logits_of, next_token, score_target, target_ids
from step1_foundations.tokens import Token, byte_spans, prompt_ids, tokenize

TEXTS = [
    "The capital of France is Paris.",
    "naïve café 🙂🙃 你好世界",
    "👩‍👩‍👧‍👦 family, flag 🇫🇷, tab\tand\nlines\n\n",
    "   leading and trailing   ",
    "\u0000\u200b\ufeff odd \x7f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﷽ ｆｕｌｌ",
]


@pytest.fixture
def model(tiny_model: Path) -> LoadedModel:
    return load(str(tiny_model), dtype="float32", quiet=True)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_spans_reassemble_the_text(tiny_model: Path, text: str) -> None:
    tokenizer = ChatTokenizer(tiny_model)
    spans = byte_spans(tokenizer, text)
    raw = text.encode()
    assert b"".join(raw[a:b] for _, (a, b) in spans) == raw
    assert [a for _, (a, _) in spans[1:]] == [b for _, (_, b) in spans[:-1]]
    assert all(tokenizer.token_bytes[i] == raw[a:b] for i, (a, b) in spans)


def test_text_that_the_tokenizer_rewrites_still_has_spans(tiny_qwen3: Path) -> None:
    text = "cafe\u0301 now"  # e + combining accent: NFC makes one character of two
    spans = byte_spans(ChatTokenizer(tiny_qwen3), text)
    assert spans[-1][1][1] == len(text.encode())
    assert all(0 <= a <= b <= len(text.encode()) for _, (a, b) in spans)


def test_chat_tokens_say_where_they_come_from(tiny_llama: Path) -> None:
    tokenizer = ChatTokenizer(tiny_llama)
    result = tokenize(tokenizer, "tiny", "hello 🙂 user", chat=True)
    raw = result.text.encode()

    def joined(keep: list[Token]) -> str:
        return b"".join(raw[t.span[0] : t.span[1]] for t in keep if t.span).decode()

    assert joined(result.tokens) == tokenizer.render([{"role": "user", "content": "hello 🙂 user"}])
    assert joined([t for t in result.tokens if t.source == "text"]) == "hello 🙂 user"
    specials = [t.piece for t in result.tokens if t.special]
    assert specials == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert all(t.source == "template" for t in result.tokens if t.special)
    assert [t.id for t in result.tokens] == prompt_ids(tokenizer, "hello 🙂 user", chat=True)


def test_a_template_that_trims(tiny_qwen3: Path) -> None:
    result = tokenize(ChatTokenizer(tiny_qwen3), "tiny", "  hello  ", chat=True)
    assert "".join(t.piece for t in result.tokens if t.source == "text").strip() == "hello"


def test_control_tokens_typed_by_the_user_are_shown_as_such(tiny_llama: Path) -> None:
    result = tokenize(ChatTokenizer(tiny_llama), "tiny", "hi<|im_end|>", chat=True)
    assert [t.special for t in result.tokens if t.source == "text"][-1]  # prompt injection, visible


def test_an_added_bos_covers_no_bytes(tiny_qwen3: Path) -> None:
    tokenizer = ChatTokenizer(tiny_qwen3)
    result = tokenize(tokenizer, "tiny", "the cat")
    first = result.tokens[0]
    assert (first.id, first.span, first.special, first.source) == (0, None, True, "added")
    assert [t.id for t in result.tokens] == prompt_ids(tokenizer, "the cat")
    assert result.characters_per_token == 7 / (len(result.tokens) - 1)


def test_no_template_and_empty_text_are_user_errors(tiny_qwen2: Path) -> None:
    tokenizer = ChatTokenizer(tiny_qwen2)
    with pytest.raises(UserError, match="no chat template"):
        tokenize(tokenizer, "tiny", "hi", chat=True)
    with pytest.raises(UserError, match="empty"):
        tokenize(tokenizer, "tiny", "")


def test_next_token_is_the_softmax_of_the_logits(model: LoadedModel) -> None:
    ids = prompt_ids(model.tokenizer, "the cat sat on")
    result = next_token(model, ids, count=10_000)
    expected = logits_of(model, ids)[-1].double().softmax(-1)
    assert len(result.candidates) == model.config.vocabulary  # ids without a token included
    assert sum(c.probability for c in result.candidates) == pytest.approx(1, abs=1e-5)
    for c in result.candidates[:20]:
        assert c.probability == pytest.approx(float(expected[c.id]), abs=1e-6)
        assert c.probability == pytest.approx(c.filtered, abs=1e-6)  # no filter is on
    assert result.entropy == pytest.approx(float(-(expected * expected.log2()).sum()), abs=1e-4)
    assert [c.probability for c in result.candidates] == sorted(
        (c.probability for c in result.candidates), reverse=True
    )


def test_filters(model: LoadedModel) -> None:
    ids = prompt_ids(model.tokenizer, "the cat sat on")
    assert next_token(model, ids, top_k=7).kept == 7
    greedy = next_token(model, ids, temperature=0)
    assert (greedy.kept, greedy.entropy_filtered, greedy.candidates[0].filtered) == (1, 0.0, 1.0)
    cool, plain, hot = (next_token(model, ids, temperature=t) for t in (0.5, 1.0, 2.0))
    assert cool.entropy_filtered < plain.entropy_filtered < hot.entropy_filtered
    assert cool.entropy == plain.entropy == hot.entropy
    nucleus = next_token(model, ids, top_p=0.5, count=10_000)
    mass = sum(c.probability for c in nucleus.candidates if c.filtered)
    least = min(c.probability for c in nucleus.candidates if c.filtered)
    assert mass >= 0.5 > mass - least


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": -0.1},
                                 {"temperature": float("nan")}])  # fmt: skip
def test_filters_out_of_range(tiny_llama: Path, bad: dict[str, float]) -> None:
    loaded = load(str(tiny_llama), dtype="float32", quiet=True)
    with pytest.raises(UserError, match="give"):
        next_token(loaded, [5, 6], **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 8, 256])
def test_entropy_of_equal_chances(count: int) -> None:
    chances = torch.zeros(300)
    chances[:count] = 1 / count
    assert entropy(chances) == pytest.approx(torch.tensor(float(count)).log2().item())


def test_target_rank_and_joint_probability(model: LoadedModel) -> None:
    ids = prompt_ids(model.tokenizer, "the cat sat on")
    logits = logits_of(model, ids)[-1]
    order = logits.argsort(descending=True).tolist()
    for word in ("the", "zzqy"):
        target = score_target(model, ids, word, logits)
        assert target.text.strip() == word
        assert order[target.rank - 1] == target.ids[0]
        expected, text = 0.0, list(ids)
        for token in target.ids:  # one token at a time, each after all before it
            expected += float(logits_of(model, text)[-1].log_softmax(-1)[token])
            text.append(token)
        assert target.joint_logprob == pytest.approx(expected, abs=1e-4)
    assert len(target.ids) > 1


def test_target_takes_the_likelier_spelling(tiny_llama: Path) -> None:
    tokenizer = ChatTokenizer(tiny_llama)
    for wanted in (tokenizer.encode(" cat"), tokenizer.encode("cat")):
        logits = torch.zeros(512)
        logits[wanted[0]] = 5
        assert target_ids(tokenizer, "cat", logits) == wanted
    assert target_ids(tokenizer, " cat", logits) == tokenizer.encode(" cat")  # asked for with its space
    with pytest.raises(UserError, match="--target is empty"):
        target_ids(tokenizer, " ", logits)


def test_context_overflow_is_a_user_error(model: LoadedModel) -> None:
    with pytest.raises(UserError, match="context is 128"):
        logits_of(model, [5] * 129)


def test_embedding_neighbours_are_the_nearest(model: LoadedModel) -> None:
    report = embed(model, ["the", "cat", "zzqy"])
    matrix = embedding_matrix(model.transformer)[: model.tokenizer.backend.get_vocab_size()]
    centred = matrix - matrix.mean(0)
    for word in report.words[:2]:
        vector = torch.nn.functional.normalize(centred, dim=-1)[word.ids].mean(0)
        cosine = torch.nn.functional.cosine_similarity(centred, vector[None], dim=-1)
        cosine[word.ids] = -2
        assert [n.id for n in word.neighbours] == cosine.topk(8).indices.tolist()
        assert [n.cosine for n in word.neighbours] == pytest.approx(cosine.topk(8).values.tolist(), abs=1e-5)
    matrix_of_cosines = torch.tensor(report.cosine)
    assert torch.allclose(matrix_of_cosines.diagonal(), torch.ones(3), atol=1e-5)
    assert torch.allclose(matrix_of_cosines, matrix_of_cosines.T)
    assert [p.is_word for p in report.points[:3]] == [True] * 3
    assert len({(p.label, p.x) for p in report.points}) == len(report.points)


def test_pca_finds_the_plane_the_points_lie_in() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(30, 2, generator=generator) * torch.tensor([5.0, 1.0])
    basis = torch.linalg.qr(torch.randn(64, 2, generator=generator))[0]
    xy, explained = pca(plane @ basis.T + 3)
    assert sum(explained) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(torch.pdist(xy), torch.pdist(plane), atol=1e-3)


def test_quantised_embeddings_are_close_to_the_floats(tiny_llama: Path) -> None:
    exact, rounded = (
        embedding_matrix(load(str(tiny_llama), dtype=d, quiet=True).transformer) for d in ("float32", "int8")
    )
    assert (exact - rounded).abs().max() < 0.03


def test_parameters_add_up_to_the_checkpoint(tiny_model: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(tiny_model / "model.safetensors")
    parts = components(load(str(tiny_model), dtype="float32", quiet=True))
    assert sum(p.parameters for p in parts) == sum(t.numel() for t in tensors.values())
    assert sum(p.bytes for p in parts) == sum(t.nbytes for t in tensors.values())
    names = {p.name: p for p in parts}
    tied = json.loads((tiny_model / "config.json").read_text())["tie_word_embeddings"]
    assert ("head (tied to embedding)" in names) == tied


def test_load_report(tiny_llama: Path) -> None:
    report = measure_load(str(tiny_llama), dtype="float32", quiet=True)
    assert report.kv_bytes_per_token == 2 * 3 * 2 * 16 * 4  # keys and values · layers · kv heads · head dim · float32
    assert report.kv_bytes_full_context == report.kv_bytes_per_token * 128
    rotary = 2 * 128 * 16 * 4
    assert report.predicted == report.parameters * 4 + rotary
    assert report.cold_seconds > 0
    assert report.warm_seconds > 0
    assert report.import_seconds is None  # torch was there before
    assert {c["what"] for c in report.choices} >= {"model", "device", "dtype", "threads"}
    int4 = measure_load(str(tiny_llama), dtype="int4", quiet=True)
    assert int4.kv_bytes_per_token == report.kv_bytes_per_token  # quantised weights compute in float32
    assert sum(p.bytes for p in int4.components) < 0.4 * sum(p.bytes for p in report.components)


@pytest.mark.real
def test_paris_is_the_capital_of_france() -> None:
    loaded = load("smollm2-135m", quiet=True)
    result = next_token(loaded, prompt_ids(loaded.tokenizer, "The capital of France is"), target="Paris")
    assert result.target is not None
    assert (result.target.text, result.target.rank) == (" Paris", 1)
    assert result.candidates[0].probability > 0.5


@pytest.mark.real
def test_queen_is_near_king() -> None:
    report = embed(load("smollm2-135m", quiet=True), ["king", "queen", "Paris"])
    assert " queen" in [n.piece for n in report.words[0].neighbours]
    assert report.cosine[0][1] > report.cosine[0][2]


@pytest.mark.real
def test_predicted_memory_is_what_is_measured() -> None:
    import subprocess
    import sys

    # A process of its own: memory that earlier tests freed would be used again and hide the growth.
    command = [sys.executable, "-m", "step1_foundations", "load", "--model", "smollm2-135m", "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if report["private"] is not None:
        # Besides the weights: the tokenizer (30 MB) and what the allocator keeps.
        assert 0.9 * report["predicted"] < report["private"] < 1.1 * report["predicted"] + 60e6
    assert report["parameters"] == 134_515_008
