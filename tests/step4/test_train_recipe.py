"""Recipes: the committed ones parse, overrides win, and a mistake is named rather than trained on."""

from pathlib import Path

import pytest

from shared.errors import UserError
from step4_finetune.recipe import load_recipe
from tests.step4.training_rows import write_run

FOLDER = Path(__file__).parents[2] / "step4_finetune/recipes"


@pytest.mark.parametrize("name", ["tools_sft_quick", "tools_sft_full"])
def test_committed_recipes_parse(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    recipe = load_recipe(path, [])
    lora, training = recipe.lora(), recipe.training
    assert (lora.r, lora.lora_alpha, lora.target_modules, lora.lora_dropout) == (16, 32, "all-linear", 0.0)
    assert (training.learning_rate, str(training.lr_scheduler_type.value)) == (6e-4, "cosine")
    assert not training.gradient_checkpointing
    assert not training.bf16
    assert recipe.output == Path("out/step4") / path.stem


def test_the_second_hour_goes_on_from_the_first(tmp_path: Path) -> None:
    recipe = load_recipe(FOLDER / "tools_sft_second.yaml", [])
    first = load_recipe(FOLDER / "tools_sft_full.yaml", [])
    assert Path(recipe.extra.adapter) == first.output / "adapter"
    assert recipe.training.learning_rate < first.training.learning_rate
    with pytest.raises(UserError, match="no LoRA adapter is there; train it first"):
        load_recipe(FOLDER / "tools_sft_second.yaml", [f"adapter={tmp_path}"]).lora()
    with pytest.raises(UserError, match="unknown key 'lora_r'"):  # the adapter has its shape already
        load_recipe(FOLDER / "tools_sft_second.yaml", ["lora_r=8"])


def test_overrides_win_and_are_recorded(tmp_path: Path) -> None:
    path = write_run(tmp_path, tmp_path)
    recipe = load_recipe(path, ["learning_rate=1e-3", "num_train_epochs=0.5", "lora_target_modules=[q_proj, v_proj]"])
    assert recipe.training.learning_rate == 1e-3
    assert recipe.training.num_train_epochs == 0.5
    assert set(recipe.lora().target_modules) == {"q_proj", "v_proj"}
    assert recipe.fingerprint()["num_train_epochs"] == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "unknown key 'learning_rat'; did you mean learning_rate?"),
        ("zzz=1", "unknown key 'zzz'$"),
        ("seed=abc", "seed: invalid int value: 'abc'"),
        ("lr_scheduler_type=cosinus", "cosinus"),
        ("seed", "write --set key=value"),
        ("packing=true", "leave packing out"),
        ("model_name_or_path=", "model_name_or_path is missing"),
        ("data=", "data"),
    ],
)
def test_a_mistake_is_named(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(write_run(tmp_path, tmp_path), [override])


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml", [])
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="key: value"):
        load_recipe(tmp_path / "a.yaml", [])
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(tmp_path / "a.yaml", [])
