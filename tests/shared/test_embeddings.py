"""shared/embeddings.py against transformers' BertModel: a tiny random one, and (`real`) all-MiniLM-L6-v2 itself.

python -m pytest tests/shared/test_embeddings.py
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from shared import embeddings
from shared.config import settings
from shared.embeddings import Embedder, batch_by_length, load_embedder
from shared.errors import UserError

WORDS = [
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "a",
    "mat",
    "tree",
    "über",
    "naïve",
    "日",
    "本",
    "##s",
    "##ing",
]
TEXTS = [
    "the cat sat on a mat",
    "dog",
    "",
    "the dogs ran under the tree on a mat",
    "naïve über 日本",
    "THE CATS\n sitting \t unknownword 🙂 \ud83d",  # capitals, unknown words, an emoji, a lone surrogate
    "a " * 50,  # longer than max_seq_length
    "cat dog",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT in sentence-transformers layout; max_seq_length 24 of 40 positions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=32)  # published files switch both on; neither may reach our numbers
    tokenizer.enable_truncation(12)
    tokenizer.save(str(directory / "tokenizer.json"))

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=40, initializer_range=0.5, **shape)
    BertModel(config).save_pretrained(directory)
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    return directory


@pytest.fixture(autouse=True)
def plain_settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """float32 on the CPU, whatever this machine has: the comparisons are to 1e-5."""
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setattr(embeddings, "cpu_has_fast_bfloat16", lambda: False)
    settings.cache_clear()
    yield
    settings.cache_clear()


def reference_states(directory: Path, texts: list[str], max_tokens: int) -> list[torch.Tensor]:
    """transformers' last hidden states, one text at a time, [tokens, hidden]; its truncation, not ours."""
    from tokenizers import Tokenizer
    from transformers import BertModel

    model = BertModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    states = []
    for text in texts:
        ids = tokenizer.encode(text.encode(errors="replace").decode()).ids
        with torch.inference_mode():
            states.append(model(torch.tensor([ids])).last_hidden_state[0])
    return states


def pooled(states: list[torch.Tensor]) -> NDArray[np.float32]:
    return torch.stack([F.normalize(s.mean(0), dim=0) for s in states]).numpy()


def test_encode_equals_transformers_in_order(tiny: Path) -> None:
    vectors = load_embedder(str(tiny)).encode(TEXTS)
    expected = pooled(reference_states(tiny, TEXTS, 24))
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() < 1e-5
    # The comparison has teeth: the texts' vectors differ from one another by far more than the tolerance.
    assert np.abs(expected[:, None] - expected[None]).max(-1)[~np.eye(len(TEXTS), dtype=bool)].min() > 0.01


def test_encode_tokens_equals_transformers_without_special_tokens(tiny: Path) -> None:
    tokens = load_embedder(str(tiny)).encode_tokens(TEXTS)
    for ours, theirs in zip(tokens, reference_states(tiny, TEXTS, 24), strict=True):
        assert ours.shape == (len(theirs) - 2, 32)
        assert torch.allclose(ours, F.normalize(theirs[1:-1], dim=-1), atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = load_embedder(str(tiny))
    together = embedder.encode(TEXTS)
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    monkeypatch.setitem(embeddings.BATCH_TOKENS, "cpu", 10)
    monkeypatch.setattr(embeddings, "WINDOW", 3)
    small = embedder.encode(TEXTS)
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together - small).max() < 1e-5
    assert np.abs(together - embedder.encode(TEXTS[::-1])[::-1]).max() < 1e-5


def test_truncation_keeps_the_first_tokens_and_count_tokens_tells(tiny: Path) -> None:
    embedder = load_embedder(str(tiny))
    exact, longer = "cat " * 22, "cat " * 22 + "tree " * 30
    assert embedder.max_tokens == 24
    assert embedder.count_tokens([exact, longer, ""]) == [24, 54, 2]
    assert np.array_equal(embedder.encode([exact]), embedder.encode([longer]))
    assert [len(t) for t in embedder.encode_tokens([exact, longer, ""])] == [22, 22, 0]


def test_empty_input_and_empty_text(tiny: Path) -> None:
    embedder = load_embedder(str(tiny))
    assert embedder.encode([]).shape == (0, 32)
    assert embedder.encode_tokens([]) == []
    assert embedder.count_tokens([]) == []
    assert np.linalg.norm(embedder.encode([""])) == pytest.approx(1, abs=1e-5)


def test_progress_counts_up_to_all(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "WINDOW", 3)
    calls: list[tuple[int, int]] = []
    load_embedder(str(tiny)).encode(TEXTS, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (len(TEXTS), len(TEXTS))


def test_bfloat16_where_the_hardware_has_it_stays_close(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = load_embedder(str(tiny)).encode(TEXTS)
    monkeypatch.setattr(embeddings, "cpu_has_fast_bfloat16", lambda: True)
    embedder = load_embedder(str(tiny))
    assert embedder.dtype == torch.bfloat16
    assert (embedder.encode(TEXTS) * exact).sum(1).min() > 0.995


def test_batches_hold_everything_once_within_the_budget() -> None:
    lengths = [3, 90, 7, 7, 250, 1, 40, 40]
    batches = batch_by_length(lengths, 100)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 100 for b in batches)
    assert batch_by_length([], 100) == []


def test_bad_directories_are_user_errors(tiny: Path, tmp_path: Path) -> None:
    def broken(name: str, change: dict[str, str | None]) -> Path:
        folder = tmp_path / name
        (folder / "1_Pooling").mkdir(parents=True)
        for file in tiny.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        for relative, text in change.items():
            (folder / relative).unlink() if text is None else (folder / relative).write_text(text)
        return folder

    config = json.loads((tiny / "config.json").read_text())
    del config["hidden_size"]
    cases: dict[str, dict[str, str | None]] = {
        "no config.json": {"config.json": None},
        "not valid JSON": {"config.json": "{"},
        "use a BERT": {"config.json": '{"model_type": "mpnet"}'},
        "lacks": {"config.json": json.dumps(config)},
        "no model.safetensors": {"model.safetensors": None},
        "damaged": {"model.safetensors": "x"},
        "no tokenizer.json": {"tokenizer.json": None},
        "cannot be read": {"tokenizer.json": "{}"},
        "does not pool by the mean alone": {"1_Pooling/config.json": '{"pooling_mode_cls_token": true}'},
        "not supported": {"modules.json": '[{"type": "sentence_transformers.models.Dense"}]'},
        "no tensor": {"config.json": (tiny / "config.json").read_text().replace('_layers": 2', '_layers": 3')},
    }
    for number, (message, change) in enumerate(cases.items()):
        with pytest.raises(UserError, match=message):
            load_embedder(str(broken(str(number), change)))
    with pytest.raises(UserError, match="give minilm-l6-v2"):
        load_embedder(str(tmp_path / "missing"))


def test_transformers_is_not_imported(tiny: Path) -> None:
    script = (
        "import sys; from shared.embeddings import load_embedder; load_embedder(sys.argv[1]).encode(['a cat']); "
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tiny)], check=True, cwd=Path(__file__).parents[2])


# --- the real model -------------------------------------------------------------------------------------------------

SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The girl is carrying a baby.",
    "A cheetah chases its prey across the field.",
    "A fast predator runs after an antelope.",
    "How do I reset my password?",
    "I forgot my login credentials and need a new one.",
    "The stock market fell sharply on Monday.",
    "Share prices dropped at the start of the week.",
    "Zürich liegt in der Schweiz; naïve café.",
    "東京は日本の首都です。",
    "E = mc² 🙂",
    "x",
    "",
    "to be or not to be " * 3,
    "The quick brown fox jumps over the lazy dog. " * 8,
    "Large language models predict the next token. " * 15,
    "def add(a, b):\n    return a + b\n" * 10,
    "word " * 254,
    "This passage is longer than the model can read. " * 60,
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    from shared import artifacts

    return artifacts.fetch("minilm-l6-v2")


@pytest.mark.real
def test_minilm_equals_transformers(minilm: Path) -> None:
    embedder: Embedder = load_embedder("minilm-l6-v2")
    assert (embedder.dimensions, embedder.max_tokens) == (384, 256)
    expected = pooled(reference_states(minilm, SENTENCES, 256))
    assert (embedder.encode(SENTENCES) * expected).sum(1).min() > 0.99999


@pytest.mark.real
def test_minilm_bfloat16_is_close_to_float32(minilm: Path) -> None:
    exact = Embedder(minilm, torch.device("cpu"), torch.float32).encode(SENTENCES)
    rounded = Embedder(minilm, torch.device("cpu"), torch.bfloat16).encode(SENTENCES)
    print("bfloat16 cosines", (exact * rounded).sum(1))
    assert (exact * rounded).sum(1).min() > 0.999


@pytest.mark.real
def test_minilm_finds_known_neighbours(minilm: Path) -> None:
    vectors = load_embedder("minilm-l6-v2").encode(SENTENCES[:9])
    similarity = vectors @ vectors.T - 2 * np.eye(9, dtype=np.float32)
    for one, other in ((0, 1), (3, 4), (5, 6), (7, 8)):
        assert similarity[one].argmax() == other
        assert similarity[other].argmax() == one
