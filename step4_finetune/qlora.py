"""Whether the frozen weights are held in 4 or 8 bits (QLoRA), and where that is refused.

    python -m step4_finetune.train step4_finetune/recipes/qlora.yaml

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.
"""

import importlib.util
from typing import TYPE_CHECKING

from shared.errors import UserError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig
    from trl import ModelConfig


def quantization(model: "ModelConfig") -> "BitsAndBytesConfig | None":
    """Return how to load the frozen weights, None for as they are.

    Raises UserError when a recipe asks for packed weights where they cannot be trained on: without CUDA, or without
    bitsandbytes. Call before anything is read: an hour of training must not turn out to have been something else.
    """
    import torch
    from trl import get_quantization_config

    if not (model.load_in_4bit or model.load_in_8bit):
        return None
    asked = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
    if not torch.cuda.is_available():
        raise UserError(
            f"{asked} needs an NVIDIA GPU, and none is here: on a CPU the packed weights are unpacked again for every "
            f"product, which costs more time than their size saves; use --set {asked}=false, or tools_sft_full.yaml"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{asked} needs the package bitsandbytes; run: uv pip install bitsandbytes")
    return get_quantization_config(model)
