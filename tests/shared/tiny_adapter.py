"""Random LoRA adapters for the tiny models, written by peft."""

from pathlib import Path

import torch

TARGETS = {
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "some": ["q_proj", "v_proj", "up_proj"],
}


def make_adapter(base: Path, target: Path, modules: list[str], seed: int, *, rslora: bool = False) -> None:
    """Write a random LoRA adapter with peft; B is not zero, so it changes the model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=modules, init_lora_weights=False, use_rslora=rslora)
    get_peft_model(model, config).save_pretrained(target)
