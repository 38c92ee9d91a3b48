"""What a checkpoint's config.json says about its shape, checked and in plain terms."""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import UserError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama-type model. `eos` are the token ids that end a turn."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    context: int
    norm_eps: float
    rope_theta: float
    tied_head: bool
    eos: tuple[int, ...]
    rope_scaling: dict[str, Any] = field(default_factory=dict)

    def kv_bytes_per_token(self, bytes_per_number: int) -> int:
        """Bytes of KV cache one token takes: keys and values of every layer and key-value head."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_number


def read_config(directory: Path) -> ModelConfig:
    """Return the model's shape from config.json (and generation_config.json) in a Hugging Face directory.

    Raises UserError when the file is missing or broken, or describes a model this code does not implement.
    """
    path = directory / "config.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{directory} has no config.json: MODEL must be a Hugging Face checkpoint directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None

    model_type = raw.get("model_type", "")
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"{path}: model_type {model_type!r} is not supported by the embedded engine (it reads "
            f"{', '.join(MODEL_TYPES)}); serve this model elsewhere and set OPENAI_BASE_URL"
        )
    try:
        config = _parse(raw, _eos_ids(directory, raw))
    except KeyError as error:
        raise UserError(f"{path} lacks {error}") from None
    rope_type = config.rope_scaling.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        raise UserError(f"{path}: rope type {rope_type!r} is not supported (supported: {', '.join(ROPE_TYPES)})")
    window = raw.get("sliding_window")
    if window and raw.get("use_sliding_window", model_type == "mistral") and window < config.context:
        raise UserError(f"{path}: sliding-window attention ({window} of {config.context} tokens) is not supported")
    return config


def _parse(raw: dict[str, Any], eos: tuple[int, ...]) -> ModelConfig:
    # transformers 5 writes rope_parameters; older files have rope_theta and rope_scaling side by side.
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    heads = raw["num_attention_heads"]
    return ModelConfig(
        model_type=raw["model_type"],
        layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        mlp=raw["intermediate_size"],
        vocabulary=raw["vocab_size"],
        context=raw["max_position_embeddings"],
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
        tied_head=raw.get("tie_word_embeddings", False),
        eos=eos,
        rope_scaling=rope,
    )


def _eos_ids(directory: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    """End-of-turn ids: generation_config.json knows more of them than config.json (Qwen and Llama 3 chat models)."""
    eos = raw.get("eos_token_id")
    with contextlib.suppress(OSError, json.JSONDecodeError):
        eos = json.loads((directory / "generation_config.json").read_text()).get("eos_token_id", eos)
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)
