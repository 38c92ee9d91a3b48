"""Turn a GGUF file into a Hugging Face directory, once, keeping the quantised blocks beside the float weights.

GGUF is llama.cpp's single-file format; transformers, peft, trl and vLLM all open a Hugging Face directory. Written:

    config.json, generation_config.json, tokenizer.json, tokenizer_config.json, chat_template.jinja
    model.safetensors        every matrix dequantised, bfloat16
    quantized.safetensors    the same matrices as published, Q4_1 and Q8_0 blocks (shared/quantization.py)

Two things differ between the formats beside the names: llama.cpp pairs neighbouring dimensions for rotary embedding
where Hugging Face pairs halves, so rows of q and k are reordered (whole rows: the blocks stay valid); and the rules
that split text before BPE are a name in GGUF and a description in tokenizer.json.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import UserError
from shared.files import atomic_directory
from shared.quantization import dequantize_q4_1, dequantize_q8_0

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(gguf_path: Path, target: Path, template: str) -> None:
    """Write the Hugging Face directory `target` from a Llama-architecture GGUF file. Atomic: all of it or nothing.

    template: the chat template to write. Raises UserError for an architecture, tokenizer or weight type not known here.
    """
    from gguf import GGUFReader
    from safetensors.torch import save_file

    try:
        reader = GGUFReader(gguf_path)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{gguf_path} is not a GGUF file this code can read: {error}") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise UserError(
            f"{gguf_path.name}: architecture {fields['general.architecture']!r} cannot be converted, only llama"
        )
    config = _config(fields)
    floats: dict[str, Tensor] = {}
    blocks: dict[str, Tensor] = {}
    for entry in reader.tensors:
        name = _name(entry.name)
        data = torch.from_numpy(entry.data.copy())
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            data = _halves_from_pairs(data, heads)
        match entry.tensor_type.name:
            case "F32":
                floats[name] = data.bfloat16()
            case "Q4_1":
                blocks[f"{name}.q4_1"], floats[name] = data, dequantize_q4_1(data).bfloat16()
            case "Q8_0":
                blocks[f"{name}.q8_0"], floats[name] = data, dequantize_q8_0(data).bfloat16()
            case other:
                raise UserError(f"{gguf_path.name}: weight type {other} of {entry.name} is not known here")

    with atomic_directory(target) as directory:
        _write_json(directory / "config.json", config)
        eos = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
        _write_json(directory / "generation_config.json", {**eos, "pad_token_id": config["pad_token_id"]})
        _write_tokenizer(directory, fields)
        (directory / "chat_template.jinja").write_text(template)
        # "format" is what transformers checks before it reads a safetensors file.
        save_file(floats, directory / "model.safetensors", metadata={"format": "pt"})
        save_file(blocks, directory / "quantized.safetensors")


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    """config.json of a Llama checkpoint from GGUF metadata."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": fields["llama.rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _name(gguf_name: str) -> str:
    """blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight"""
    match gguf_name.split("."):
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight"
        case ["output_norm", "weight"]:
            return "model.norm.weight"
        case ["blk", index, part, "weight"] if part in NAMES:
            return f"model.layers.{index}.{NAMES[part]}.weight"
        case _:
            raise UserError(f"GGUF tensor {gguf_name!r} has no place in a Llama checkpoint")


def _halves_from_pairs(rows: Tensor, heads: int) -> Tensor:
    """Reorder each head's rows from (0, half, 1, half+1, …) to (0, 1, …, half, half+1, …)."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _write_tokenizer(directory: Path, fields: dict[str, Any]) -> None:
    """Write tokenizer.json and tokenizer_config.json for a byte-level BPE vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, rules = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    if (kind, rules) != ("gpt2", "smollm"):
        raise UserError(f"GGUF tokenizer {kind}/{rules} is not known here, only gpt2/smollm")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    # "smollm" splits every digit off first. transformers 5.19's own GGUF reader leaves that out, and then tokenizes
    # two spaces before a number differently from the published tokenizer.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {
        f"{role}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    _write_json(
        directory / "tokenizer_config.json",
        {
            **named,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
        },
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
