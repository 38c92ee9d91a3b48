"""A DPO recipe: a recipe (recipe.py) whose adapter is the reference too, and that says how far to go from it.

load_dpo_recipe(Path("step4_finetune/recipes/tools_dpo_quick.yaml"), ["beta=0.2"])
"""

from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import UserError
from step4_finetune.recipe import Extra, Recipe, parse, read_values


@dataclass
class DpoExtra(Extra):
    """The fields of a DPO recipe that trl's SFTConfig and ModelConfig do not have.

    data: JSONL of pairs (dpo_pairs.py). beta: how much a change from the reference costs; Rafailov et al. use 0.1.
    """

    beta: float = field(default=0.1, metadata={"help": "weight of the distance from the reference"})


@dataclass(frozen=True)
class DpoRecipe(Recipe):
    """A parsed DPO recipe."""

    extra: DpoExtra


def load_dpo_recipe(path: Path, overrides: list[str]) -> DpoRecipe:
    """Read a DPO recipe file; overrides are "key=value" texts and win.

    Raises what load_recipe raises, and UserError for a recipe that starts from nothing.
    """
    values = read_values(path, overrides)
    for key in ("model_name_or_path", "adapter"):
        if not values.get(key):
            raise UserError(f"recipe {path}: {key} is missing")
    recipe = DpoRecipe(*parse(path, values, DpoExtra))
    if recipe.extra.beta <= 0:
        raise UserError(f"recipe {path}: beta is {recipe.extra.beta}; it must be above 0")
    return recipe
