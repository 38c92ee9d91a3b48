"""What becomes of a trained adapter: merged into a plain model, or published for the other steps to use.

    python -m step4_finetune merge out/step4/tools_sft_full/adapter --to out/step4/merged
    python -m step4_finetune publish out/step4/tools_sft_full/adapter --name tools

Published means shared/adapters/NAME: the LoRA matrices in bfloat16 and a card that says how they came about. The
embedded engine loads such a directory as it is, vLLM as a LoRA module, and a merged model is loaded by anything.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import atomic_directory

PUBLISHED = Path(__file__).parents[1] / "shared" / "adapters"
MAX_BYTES = 12_000_000  # an adapter is committed to git; LoRA of rank 16 on SmolLM2-135M is 9.8 MB in bfloat16


def merge(adapter: Path, target: Path, base: str | None = None) -> Path:
    """Write the base model with the adapter's update added to its matrices: W + (alpha/r)·B·A, in bfloat16.

    base: a model as MODEL takes it; default the one the adapter was trained on. Returns the directory, which
    transformers, vLLM and the embedded engine open like any model.
    Raises UserError when `adapter` is none, or `target` exists.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from shared.models import resolve

    configuration = read_configuration(adapter)
    if target.exists():
        raise UserError(f"{target} exists; choose another directory, or delete it")
    directory = resolve(base or str(configuration["base_model_name_or_path"]))
    # Added in float32 and rounded once: bfloat16 sums would lose the small updates.
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    with atomic_directory(target) as folder:
        merged.to(torch.bfloat16).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            if (directory / name).exists():
                shutil.copyfile(directory / name, folder / name)
    return target


def publish(adapter: Path, name: str, card: str, folder: Path = PUBLISHED) -> Path:
    """Copy an adapter with its card to folder/name, replacing an earlier one once the new one is complete.

    Raises UserError when it is no adapter, larger than what a repository should carry (12 MB), or the name is no plain
    folder name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise UserError(f"--name {name!r}: use small letters, digits, - and _")
    read_configuration(adapter)
    size = (adapter / "adapter_model.safetensors").stat().st_size
    if size > MAX_BYTES:
        raise UserError(
            f"{adapter} has {size / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.0f}: train with a smaller lora_r"
        )
    target, replaced = folder / name, folder / f".{name}.replaced"
    new = folder / f".{name}.new"
    shutil.rmtree(new, ignore_errors=True)  # of a publish that was killed
    with atomic_directory(new) as made:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(adapter / file, made / file)
        (made / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    new.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def read_configuration(adapter: Path) -> dict[str, Any]:
    """adapter_config.json of a peft directory. Raises UserError when the directory is not a complete adapter."""
    try:
        configuration: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{adapter} is not an adapter: adapter_config.json is missing or broken") from None
    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"{adapter} is not an adapter: adapter_model.safetensors is missing")
    return configuration
