"""A recipe: one YAML file that says everything about a training run, read by trl's own dataclasses and parser.

    load_recipe(Path("step4_finetune/recipes/tools_sft_quick.yaml"), ["num_train_epochs=1"])

Keys are the fields of trl's SFTConfig (optimiser, schedule, batch, seed, output_dir …), of its ModelConfig (model and
LoRA) and of `Extra` below. A key that is none of them is refused: a misspelt learning rate must not train for an hour.
A recipe that names an `adapter` goes on from it; the adapter's own file says rank, alpha and targets, so such a recipe
has none of the lora_ keys.
"""

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from shared.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import ModelConfig, SFTConfig

# What trl decides for GPUs, or for people with accounts. A recipe may still say otherwise.
DEFAULTS: dict[str, Any] = {
    "dtype": "auto",  # here: bfloat16 where the hardware multiplies it, else float32
    "use_peft": True,
    "gradient_checkpointing": False,  # trl's True recomputes the forward pass to save memory: +50 % of time
    "bf16": False,  # autocast; the frozen weights are held in `dtype` instead, LoRA's always in float32
    "report_to": "tensorboard",
    "logging_steps": 1,
    "save_strategy": "no",  # by the clock instead, see checkpoint_minutes
    "save_total_limit": 2,
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
}


@dataclass
class Extra:
    """The fields of a recipe that trl does not have.

    data: JSONL of conversations (collate.py says what a row is). adapter: LoRA directory where training starts; empty
    for a fresh one. checkpoint_minutes: time between two checkpoints.
    """

    data: str = field(metadata={"help": "JSONL file of conversations"})
    adapter: str = field(default="", metadata={"help": "LoRA directory to start from"})
    checkpoint_minutes: float = field(default=5.0, metadata={"help": "minutes between checkpoints"})


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe. values: the keys and values that were written down, for the record."""

    training: "SFTConfig"
    model: "ModelConfig"
    extra: Extra
    values: dict[str, Any]

    @property
    def output(self) -> Path:
        return Path(str(self.training.output_dir))

    @property
    def start(self) -> Path | None:
        """The weights of the adapter to start from, where one is named. Raises UserError when they are not there."""
        if not self.extra.adapter:
            return None
        weights = Path(self.extra.adapter) / "adapter_model.safetensors"
        if not weights.exists():
            raise UserError(f"adapter={self.extra.adapter}: no LoRA adapter is there; train it first")
        return weights

    def lora(self) -> "LoraConfig":
        """The adapter's shape, as peft wants it. Raises UserError when the one to start from is not there."""
        from peft import LoraConfig
        from trl import get_peft_config

        if self.start:
            started: LoraConfig = LoraConfig.from_pretrained(self.extra.adapter)
            started.inference_mode = False
            started.base_model_name_or_path = None  # peft warns when a directory stands for the catalog name in it
            return started
        config: LoraConfig = get_peft_config(self.model)
        if isinstance(config.target_modules, list | set) and "all-linear" in config.target_modules:
            config.target_modules = "all-linear"  # the parser makes a list of it, peft knows it as a word
        return config

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued: every written value, the data, the adapter started from.

        Files by their hash, not by where they are. Raises UserError when one is not there.
        """
        try:
            digest = hashlib.sha256(Path(self.extra.data).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"data={self.extra.data}: cannot be read ({error.strerror}); build it first") from None
        ignored = ("output_dir", "data", "adapter", "checkpoint_minutes")  # where, not what
        made = {**{k: v for k, v in self.values.items() if k not in ignored}, "data_sha256": digest}
        if self.start:
            made["adapter_sha256"] = hashlib.sha256(self.start.read_bytes()).hexdigest()
        return made


def load_recipe(path: Path, overrides: list[str]) -> Recipe:
    """Read a recipe file; overrides are "key=value" texts and win.

    Raises UserError for a missing or malformed file, an unknown key and a value of the wrong type.
    """
    return Recipe(*parse(path, read_values(path, overrides), Extra))


def read_values(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The keys and values of a recipe file, overridden. Raises UserError for a file or an override that is none."""
    import yaml

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
    return values


ExtraT = TypeVar("ExtraT", bound=Extra)


def parse(
    path: Path, values: dict[str, Any], extra_type: type[ExtraT]
) -> tuple["SFTConfig", "ModelConfig", ExtraT, dict[str, Any]]:
    """Have trl's parser check the values; return what a Recipe is made of. Raises UserError that names the key."""
    from trl import ModelConfig, SFTConfig, TrlParser  # ten seconds: after what can be said without it

    class Parser(TrlParser):  # type: ignore[misc]  # trl is untyped
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{path}: {message}")

    types = (extra_type, ModelConfig, SFTConfig)
    known = {f.name for t in types for f in dataclasses.fields(t) if f.init}
    if values.get("adapter"):
        known = {name for name in known if not name.startswith("lora_")}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            raise UserError(f"recipe {path}: unknown key {key!r}" + (f"; did you mean {close[0]}?" if close else ""))
    try:
        extra, model, training = Parser(types).parse_args_and_config(_as_arguments(DEFAULTS | values))
    except (ValueError, TypeError) as error:
        raise UserError(f"recipe {path}: {error}") from None
    if not model.model_name_or_path:
        raise UserError(f"recipe {path}: model_name_or_path is missing")
    if training.packing or training.padding_free:
        raise UserError(f"recipe {path}: batches are laid out without padding already; leave packing out")
    return training, model, extra, values


def _as_arguments(values: dict[str, Any]) -> list[str]:
    """The values as command-line words: the parser checks the types of those, but not of YAML values."""
    words = []
    for key, value in values.items():
        if value is not None:
            words.append(f"--{key}")
            if isinstance(value, dict):
                words.append(json.dumps(value))
            else:
                words += [str(item) for item in (value if isinstance(value, list) else [value])]
    return words
