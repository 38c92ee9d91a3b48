"""A DPO recipe: a recipe (recipe.py) that also says which adapter to start from, and how far it may go from it.

    load_dpo_recipe(Path("step4_finetune/recipes/tools_dpo_quick.yaml"), ["beta=0.2"])

The adapter's own file says rank, alpha and targets, so a DPO recipe has none of the lora_ keys.
"""

import dataclasses
import difflib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shared.errors import UserError
from step4_finetune.recipe import DEFAULTS, Extra, Recipe, _as_arguments

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass
class DpoExtra(Extra):
    """The fields of a DPO recipe that trl's SFTConfig and ModelConfig do not have.

    data: JSONL of pairs (dpo_pairs.py). beta: how much a change from the reference costs; Rafailov et al. use 0.1.
    """

    adapter: str = field(default="", metadata={"help": "LoRA directory to start from, which is the reference too"})
    beta: float = field(default=0.1, metadata={"help": "weight of the distance from the reference"})


@dataclass(frozen=True)
class DpoRecipe(Recipe):
    """A parsed DPO recipe."""

    extra: DpoExtra

    @property
    def weights(self) -> Path:
        """The file of the adapter to start from."""
        return Path(self.extra.adapter) / "adapter_model.safetensors"

    def lora(self) -> "LoraConfig":
        """The shape of the adapter that is trained on. Raises UserError when none is there."""
        from peft import LoraConfig

        if not self.weights.exists():
            raise UserError(f"adapter={self.extra.adapter}: no LoRA adapter is there; train it first")
        config: LoraConfig = LoraConfig.from_pretrained(self.extra.adapter)
        config.inference_mode = False
        config.base_model_name_or_path = None  # peft warns when a directory stands for the catalog name in it
        return config

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued; the adapter by its weights, not by where it is."""
        written = {key: value for key, value in super().fingerprint().items() if key != "adapter"}
        return written | {"adapter_sha256": hashlib.sha256(self.weights.read_bytes()).hexdigest()}


def load_dpo_recipe(path: Path, overrides: list[str]) -> DpoRecipe:
    """Read a DPO recipe file; overrides are "key=value" texts and win.

    Raises UserError for a missing or malformed file, an unknown key and a value of the wrong type.
    """
    import yaml
    from trl import ModelConfig, SFTConfig, TrlParser

    class Parser(TrlParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{path}: {message}")

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"recipe {path}: must be a list of `key: value` lines")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: write --set key=value")
        values[key.strip()] = yaml.safe_load(text) if text else None
    types = (DpoExtra, ModelConfig, SFTConfig)
    known = {f.name for t in types for f in dataclasses.fields(t) if f.init and not f.name.startswith("lora_")}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            raise UserError(f"recipe {path}: unknown key {key!r}" + (f"; did you mean {close[0]}?" if close else ""))
    try:
        extra, model, training = Parser(types).parse_args_and_config(_as_arguments(DEFAULTS | values))
    except (ValueError, TypeError) as error:
        raise UserError(f"recipe {path}: {error}") from None
    for key in ("model_name_or_path", "adapter"):
        if not values.get(key):
            raise UserError(f"recipe {path}: {key} is missing")
    if extra.beta <= 0:
        raise UserError(f"recipe {path}: beta is {extra.beta}; it must be above 0")
    return DpoRecipe(training, model, extra, values)
