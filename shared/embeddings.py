"""Sentence embeddings: a BERT encoder written to be read, and the batching that keeps it busy.

    word + position + token-type embedding → LayerNorm
    → [ attention (all tokens see all) → + → LayerNorm → GELU MLP → + → LayerNorm ] × layers
    → mean over the tokens → unit length

Reads sentence-transformers directories (default all-MiniLM-L6-v2: 6 layers, 384 dimensions, 256 tokens) without
importing transformers, which takes 3-10 s. Serves /v1/embeddings (shared/openai_server.py) and step 3's index.
Sources: Devlin et al., "BERT", NAACL 2019; Reimers & Gurevych, "Sentence-BERT", EMNLP 2019.

    python -m pytest tests/shared/test_embeddings.py     # the same numbers as transformers' BertModel
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from shared.config import settings
from shared.errors import UserError
from shared.models import choose_device, choose_threads
from shared.provenance import cpu_has_fast_bfloat16

# Padded tokens per forward pass. On an EPYC without AVX-512, 48 passages of 100 tokens, texts per CPU second of one
# thread: 512 → 32.5, 1024 → 33.1, 2048 → 30.3, 4096 → 27.5 (activations leave the cache). Attention per text without
# padding gave 34.3: not worth a second code path. The GPU numbers are not measured.
BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536, "mps": 16_384}
# Texts tokenised and sorted together: enough to find neighbours of equal length, few enough to hold as Python lists.
WINDOW = 4096


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT encoder; max_tokens counts [CLS] and [SEP]."""

    layers: int
    hidden: int
    heads: int
    norm_eps: float
    max_tokens: int


@dataclass
class BertLayer:
    """The weights of one block, each (weight, bias). Query, key and value lie in one matrix: one larger product."""

    qkv: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]
    attention_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    mlp_norm: tuple[Tensor, Tensor]


class Embedder:
    """Texts to vectors. Safe to call from several threads at once: a call changes nothing in the object."""

    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.config = read_bert_config(directory)
        self.dimensions = self.config.hidden
        self.max_tokens = self.config.max_tokens
        self.device, self.dtype = device, dtype
        self._tokenizer = _load_tokenizer(directory)
        self._load_weights(directory)

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return one unit-length row per text, float32 [texts, dimensions], in the order of `texts`.

        A text of more than max_tokens tokens is represented by its first ones, as in sentence-transformers.
        on_progress(texts done, texts in all) is called after every forward pass.
        """
        result = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for done, (indices, hidden, keep) in self._forward_all(texts):
            # Pooling in float32: the mean of 256 bfloat16 numbers would lose what is left of their precision.
            sums = (hidden.float() * keep[:, :, None]).sum(1)
            # Unit length makes the division by the number of tokens unnecessary: the mean points where the sum points.
            result[indices] = F.normalize(sums, dim=-1).cpu().numpy()
            if on_progress:
                on_progress(done, len(texts))
        return result

    def encode_tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """Return one float32 CPU tensor [tokens, dimensions] per text, rows of unit length, without [CLS] and [SEP].

        For late interaction (score = sum over query tokens of the best match among the passage's tokens).
        An empty text gives [0, dimensions]. Source: Khattab & Zaharia, "ColBERT", SIGIR 2020.
        """
        result = [torch.empty(0)] * len(texts)
        for _, (indices, hidden, keep) in self._forward_all(texts):
            unit = F.normalize(hidden.float(), dim=-1).cpu()
            for row, index, count in zip(unit, indices, keep.sum(1).tolist(), strict=True):
                result[index] = row[1 : count - 1].clone()  # a view would keep the whole padded batch alive
        return result

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return each text's tokens, [CLS] and [SEP] included, before truncation: more than max_tokens means cut."""
        return [len(ids) for ids in self._tokenize(texts)]

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        # A lone surrogate ("\ud800" is valid JSON) has no UTF-8 form and the library refuses it; it becomes "?".
        clean = [text.encode(errors="replace").decode() for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(clean)]

    def _forward_all(self, texts: Sequence[str]) -> Iterator[tuple[int, tuple[list[int], Tensor, Tensor]]]:
        """Yield (texts done, (their indices, hidden states [n, longest, hidden], mask of real tokens [n, longest]))."""
        done = 0
        for start in range(0, len(texts), WINDOW):
            rows = [self._truncate(ids) for ids in self._tokenize(texts[start : start + WINDOW])]
            for batch in batch_by_length([len(row) for row in rows], BATCH_TOKENS[self.device.type]):
                done += len(batch)
                yield done, ([start + i for i in batch], *self._forward([rows[i] for i in batch]))

    def _truncate(self, ids: list[int]) -> list[int]:
        """Keep the first tokens and the closing [SEP]. Not by the tokenizer, whose setting threads would share."""
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Run token ids through the encoder; return hidden states [n, longest, hidden] and the mask [n, longest]."""
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        keep = torch.arange(longest, device=self.device) < lengths[:, None]
        mask = None if bool(keep.all()) else keep[:, None, None, :]

        x = self.words[ids] + self.positions[:longest]
        x = self._norm(x, self.embedding_norm)
        for layer in self.layers:
            x = self._norm(x + self._attention(layer, x, mask), layer.attention_norm)
            x = self._norm(x + F.linear(F.gelu(F.linear(x, *layer.up)), *layer.down), layer.mlp_norm)
        return x, keep

    def _attention(self, layer: BertLayer, x: Tensor, mask: Tensor | None) -> Tensor:
        """Every token attends to every real token of its own text. x: [n, longest, hidden]."""
        n, longest, hidden = x.shape
        heads = F.linear(x, *layer.qkv).view(n, longest, 3, self.config.heads, -1)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, mask)
        return F.linear(mixed.transpose(1, 2).reshape(n, longest, hidden), *layer.output)

    def _norm(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, (self.config.hidden,), *weights, self.config.norm_eps)

    def _load_weights(self, directory: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = directory / "model.safetensors"
        try:
            tensors = load_file(path)
        except FileNotFoundError:
            raise UserError(f"{directory} has no model.safetensors; other weight formats are not read") from None
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); fetch or save it again") from None

        def pair(*names: str) -> tuple[Tensor, Tensor]:
            weight, bias = (torch.cat([tensors[f"{name}.{part}"] for name in names]) for part in ("weight", "bias"))
            return weight.to(self.device, self.dtype), bias.to(self.device, self.dtype)

        try:
            self.words = tensors["embeddings.word_embeddings.weight"].to(self.device, self.dtype)
            # Token type is always 0 here (there is no second sentence), so its row is added once and for all.
            positions = tensors["embeddings.position_embeddings.weight"]
            positions = positions + tensors["embeddings.token_type_embeddings.weight"][0]
            self.positions = positions.to(self.device, self.dtype)
            self.embedding_norm = pair("embeddings.LayerNorm")
            self.layers = []
            for index in range(self.config.layers):
                prefix = f"encoder.layer.{index}."
                self.layers.append(
                    BertLayer(
                        qkv=pair(*(f"{prefix}attention.self.{name}" for name in ("query", "key", "value"))),
                        output=pair(f"{prefix}attention.output.dense"),
                        attention_norm=pair(f"{prefix}attention.output.LayerNorm"),
                        up=pair(f"{prefix}intermediate.dense"),
                        down=pair(f"{prefix}output.dense"),
                        mlp_norm=pair(f"{prefix}output.LayerNorm"),
                    )
                )
        except KeyError as error:
            raise UserError(f"{path} has no tensor {error}; save it with transformers' BertModel") from None


def load_embedder(name_or_dir: str = "minilm-l6-v2") -> Embedder:
    """Load an embedding model: a catalogue name (fetched if need be) or a sentence-transformers directory.

    Device and threads come from the environment (shared/config.py); bfloat16 where the hardware multiplies it (cosine
    to the float32 vector at least 0.9998 over the test's 20 sentences), else float32: ten times faster without it.
    Raises UserError: neither a name nor a directory, not a BERT, other pooling than the mean, damaged files.
    """
    from shared import artifacts, catalog

    known = name_or_dir in catalog.load()
    directory = artifacts.fetch(name_or_dir) if known else Path(name_or_dir).expanduser()
    if not directory.is_dir():
        raise UserError(f"{name_or_dir!r} is no embedding model: give minilm-l6-v2 or a model directory")
    device = choose_device(settings().device).value
    fast_bfloat16 = device == "cuda" or (device == "cpu" and cpu_has_fast_bfloat16())
    if device == "cpu":
        torch.set_num_threads(int(choose_threads(settings().threads).value))
    return Embedder(directory, torch.device(device), torch.bfloat16 if fast_bfloat16 else torch.float32)


def batch_by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices so that each group, padded to its longest member, has at most `budget` tokens (or one member).

    Longest first: neighbours then have nearly equal lengths, so little is padded, and memory peaks at the start.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(index)
    return batches


def read_bert_config(directory: Path) -> BertConfig:
    """Return the encoder's shape from a sentence-transformers directory.

    Raises UserError when a file is missing or broken, or asks for what this code does not do.
    """
    raw = _read_json(directory / "config.json")
    if raw is None:
        raise UserError(f"{directory} has no config.json: give a sentence-transformers directory")
    if raw.get("model_type") != "bert":
        raise UserError(f"{directory} is a {raw.get('model_type')!r} model; use a BERT, like minilm-l6-v2")
    if raw.get("hidden_act", "gelu") != "gelu" or raw.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{directory}: only BERT with GELU and absolute positions is supported; use another model")
    pooling = _read_json(directory / "1_Pooling" / "config.json") or {}
    modes = [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    if modes not in ([], ["pooling_mode_mean_tokens"]):
        raise UserError(f"{directory} does not pool by the mean alone; use a model that does, like minilm-l6-v2")
    modules: Any = _read_json(directory / "modules.json") or []
    extra = [m["type"] for m in modules if m["type"].split(".")[-1] not in ("Transformer", "Pooling", "Normalize")]
    if extra:
        raise UserError(f"{directory} has a module {extra[0]}, which is not supported; use a model without it")
    limits = _read_json(directory / "sentence_bert_config.json") or {}
    try:
        return BertConfig(
            layers=raw["num_hidden_layers"],
            hidden=raw["hidden_size"],
            heads=raw["num_attention_heads"],
            norm_eps=raw.get("layer_norm_eps", 1e-12),
            max_tokens=min(limits.get("max_seq_length") or 1_000_000, raw["max_position_embeddings"]),
        )
    except KeyError as error:
        raise UserError(f"{directory / 'config.json'} lacks {error}; save the model again with transformers") from None


def _load_tokenizer(directory: Path) -> Any:
    """The `tokenizers` object, without the padding and truncation to 128 that published files switch on."""
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{directory} has no tokenizer.json; save it with transformers' fast tokenizer first")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise UserError(f"{path} cannot be read ({error}); fetch or save it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(path: Path) -> Any:
    """The parsed file; None when it does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch or save it again") from None
