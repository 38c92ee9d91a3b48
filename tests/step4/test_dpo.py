"""DPO on the tiny model: trl's loss, a prompt computed once, kill -9, and mistakes that are named."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import UserError
from shared.tokenizer import ChatTokenizer
from step4_finetune.collate import encode
from step4_finetune.dpo import Preferred, train
from step4_finetune.dpo_recipe import DpoRecipe, load_dpo_recipe
from step4_finetune.recipe import load_recipe
from tests.step4.training_rows import rows

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "step4_finetune/recipes"
# Trains as the command does, but dies when the given pass over a batch begins; 2 passes of the estimate come first.
KILLED = """
import os, signal, sys
from pathlib import Path
from step4_finetune import preference_trainer
from step4_finetune.dpo import train
from step4_finetune.dpo_recipe import load_dpo_recipe
compute, passes = preference_trainer.PreferenceTrainer.compute_loss, []
def dying(self, *args, **kwargs):
    passes.append(1)
    if len(passes) == 2 + 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, *args, **kwargs)
preference_trainer.PreferenceTrainer.compute_loss = dying
train(load_dpo_recipe(Path(sys.argv[1]), []))
"""


def pair_rows(count: int = 10) -> list[dict[str, Any]]:
    """Right answers begin with "the", wrong ones do not: something that can be learnt in a few steps."""
    result = []
    for row in rows(count):
        *prompt, answer = row["messages"]
        wrong = {"role": "assistant", "content": f"a {answer['content'].removeprefix('the ')} or so"}
        pair = {"id": row["id"], "messages": prompt, "tools": None, "chosen": answer, "rejected": wrong}
        result.append(pair)
    return result


def write_adapter(folder: Path, model: Path, rank: int = 4, seed: int = 5) -> Path:
    """A LoRA directory as training leaves it, with small random matrices."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from step4_finetune.trainer import save_adapter

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    save_adapter(adapted, folder, str(model))
    return folder


@pytest.fixture(scope="module")
def sft(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("sft") / "adapter", tiny_llama)


def write_run(folder: Path, model: Path, adapter: Path, **values: Any) -> Path:
    """Write pairs and a recipe into `folder`; return the recipe's path. Its output_dir is folder/out."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows()))
    recipe = {
        "model_name_or_path": str(model),
        "adapter": str(adapter),
        "data": str(folder / "pairs.jsonl"),
        "output_dir": str(folder / "out"),
        "dtype": "float32",
        "beta": 0.3,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "max_length": 128,
        "seed": 3,
        "checkpoint_minutes": 0,
    } | values
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    return path


def read(path: Path) -> DpoRecipe:
    return load_dpo_recipe(path, [])


@pytest.fixture(scope="module")
def undisturbed(tiny_llama: Path, sft: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Preferred]:
    """One run from beginning to end: 10 pairs, batches of 4, 2 epochs, so 6 steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder / "out", train(read(write_run(folder, tiny_llama, sft)))


def assert_same(output: Path, undisturbed: Path) -> None:
    theirs = load_file(undisturbed / "adapter/adapter_model.safetensors")
    for name, tensor in load_file(output / "adapter/adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0.01, atol=1e-6)  # one step of bfloat16 is 0.8 %


def test_it_prefers_the_right_answers_and_writes_what_it_says(undisturbed: tuple[Path, Preferred]) -> None:
    output, result = undisturbed
    assert (result.pairs, result.left_out, result.steps, result.resumed_from) == (10, 0, 6, 0)
    # The reference is where training starts, so nothing is preferred yet.
    assert result.first_loss == pytest.approx(math.log(2), abs=1e-4)
    history = json.loads((output / "training.json").read_text())["history"]
    assert history[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert history[-1]["loss"] < 0.5
    assert history[-1]["rewards/accuracies"] == 1.0
    assert history[-1]["rewards/chosen"] > history[-1]["rewards/rejected"]
    assert (output / "training.png").stat().st_size > 10_000
    assert list((output / "runs").glob("events.out.tfevents.*"))
    config = json.loads((output / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


@pytest.fixture
def trainers(tiny_llama: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Our trainer and trl's, on the same adapter, moved by the same noise since the reference was taken."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    from step4_finetune.preference_trainer import PreferenceTrainer, read_pairs
    from step4_finetune.trainer import load_tokenizer

    recipe = read(write_run(tmp_path, tiny_llama, sft, report_to="none"))
    pairs, _ = read_pairs(tmp_path / "pairs.jsonl", ChatTokenizer(tiny_llama), 128)
    ours = PreferenceTrainer(recipe, tiny_llama, pairs)
    ours.compute_reference()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", lambda self, dataset, *_: dataset)  # batches are made below
    args = DPOConfig(str(tmp_path / "trl"), beta=0.3, bf16=False, gradient_checkpointing=False, report_to="none")
    theirs = DPOTrainer(
        PeftModel.from_pretrained(base, sft, is_trainable=True),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=load_tokenizer(tiny_llama),
    )
    noise = torch.Generator().manual_seed(9)
    named = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        if parameter.requires_grad:
            moved = torch.randn(parameter.shape, generator=noise) * 0.05
            for each in (parameter, named[name]):
                each.data += moved
    return ours, theirs


def test_loss_and_gradients_are_those_of_trl(trainers: tuple[Any, Any]) -> None:
    from step4_finetune.preference_trainer import collate_pairs

    ours, theirs = trainers
    places = [0, 2, 3, 7, 9]  # 2 and 3 have equal prompts
    batch = ours._collate([{"index": place} for place in places])
    assert collate_pairs([ours.pairs[p] for p in places])["input_ids"].shape[1] < 0.6 * batch["sequence_tokens"]
    loss = ours.compute_loss(ours.model, batch)
    loss.backward()
    padded = theirs.data_collator(
        [
            {"prompt_ids": p.chosen.prompt, "chosen_ids": p.chosen.completion, "rejected_ids": p.rejected.completion}
            for p in (ours.pairs[place] for place in places)
        ]
    )
    reference = theirs.compute_loss(theirs.model, theirs._prepare_inputs(padded))
    reference.backward()
    assert abs(reference.item() - math.log(2)) > 0.01  # else there would be nothing to compare
    assert loss.item() == pytest.approx(reference.item(), abs=1e-4)
    for name in ("rewards/margins", "rewards/chosen", "rewards/rejected", "rewards/accuracies"):
        assert ours._metrics["train"][name][-1] == pytest.approx(theirs._metrics["train"][name][-1], abs=1e-4)
    gradients = [
        torch.cat([p.grad.flatten() for n, p in t.model.named_parameters() if ".ref." not in n and p.grad is not None])
        for t in trainers
    ]
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def test_log_probabilities_are_those_of_each_answer_alone(tiny_llama: Path, sft: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from step4_finetune.preference_trainer import PreferenceTrainer, read_pairs

    recipe = read(write_run(tmp_path, tiny_llama, sft, report_to="none"))
    pairs, _ = read_pairs(tmp_path / "pairs.jsonl", ChatTokenizer(tiny_llama), 128)
    trainer = PreferenceTrainer(recipe, tiny_llama, pairs)
    trainer.compute_reference()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, sft)
    for pair, (chosen, rejected) in zip(pairs[:4], trainer.reference.tolist(), strict=False):
        for example, found in ((pair.chosen, chosen), (pair.rejected, rejected)):
            ids = torch.tensor([example.prompt + example.completion])
            with torch.no_grad():
                logits = model(ids).logits[0, len(example.prompt) - 1 : -1].log_softmax(-1)
            expected = logits.gather(1, ids[0, len(example.prompt) :, None]).sum().item()
            assert found == pytest.approx(expected, abs=1e-3)


def test_kill_9_then_the_same_command_ends_as_undisturbed(
    undisturbed: tuple[Path, Preferred], tiny_llama: Path, sft: Path, tmp_path: Path
) -> None:
    recipe = write_run(tmp_path, tiny_llama, sft)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(recipe)], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    result = train(read(recipe))
    assert result.resumed_from == 3
    assert_same(tmp_path / "out", undisturbed[0])
    ours, reference = (
        json.loads((path / "training.json").read_text())["history"] for path in (tmp_path / "out", undisturbed[0])
    )
    # The reference of the first process: taken anew it would be the moved model, and the loss log 2 again.
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in reference], rel=1e-4)


def test_accumulated_batches_train_as_one_large_batch(tiny_llama: Path, sft: Path, tmp_path: Path) -> None:
    for name, size, parts in (("a", 5, 1), ("b", 1, 5)):
        (tmp_path / name).mkdir()
        values = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "num_train_epochs": 1}
        train(read(write_run(tmp_path / name, tiny_llama, sft, **values)))
    assert_same(tmp_path / "b/out", tmp_path / "a/out")


def test_a_finished_run_and_another_one_are_not_overwritten(
    undisturbed: tuple[Path, Preferred], tiny_llama: Path, sft: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is trained already"):
        train(read(undisturbed[0].parent / "recipe.yaml"))
    recipe = write_run(tmp_path, tiny_llama, sft)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/recipe.json").write_text(json.dumps(read(recipe).fingerprint()))
    other = write_adapter(tmp_path / "other", tiny_llama, seed=6)
    with pytest.raises(UserError, match="a run with another adapter_sha256, beta;"):
        train(load_dpo_recipe(recipe, [f"adapter={other}", "beta=0.5"]))


def test_an_adapter_that_does_not_fit_is_refused(tiny_llama: Path, sft: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no LoRA adapter is there; train it first"):
        train(load_dpo_recipe(write_run(tmp_path, tiny_llama, sft), ["adapter=out/none"]))
    for name, change in (("shapes", lambda w: {k: v[:2].contiguous() for k, v in w.items()}), ("part", first)):
        folder = write_adapter(tmp_path / name, tiny_llama)
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
        with pytest.raises(UserError, match="is not an adapter of this model"):
            train(load_dpo_recipe(write_run(tmp_path, tiny_llama, sft), [f"adapter={folder}"]))
        (tmp_path / "out/recipe.json").unlink()


def first(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(weights.items())[:2])


def test_too_little_memory_is_said_before_training(
    tiny_llama: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.weights.available_memory", lambda: 1000)
    with pytest.raises(UserError, match="lower per_device_train_batch_size"):
        train(read(write_run(tmp_path, tiny_llama, sft)))


def test_pairs_that_are_none_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    from step4_finetune.preference_trainer import read_pairs

    tokenizer, path = ChatTokenizer(tiny_llama), tmp_path / "pairs.jsonl"
    good = pair_rows(2)[1]
    for row, reason in [
        (good | {"rejected": good["chosen"]}, "line 1: the chosen and the rejected answer are the same"),
        ({"id": "1"}, "line 1: not a pair: 'messages' is missing"),
        (good | {"chosen": good["messages"][-1]}, "the last message must be the assistant's"),
    ]:
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=reason):
            read_pairs(path, tokenizer, 128)
    path.write_text("".join(json.dumps(row) + "\n" for row in pair_rows()))
    longest = max(len(encode({"id": 0, "messages": [*r["messages"], r["rejected"]]}, tokenizer)) for r in pair_rows())
    kept, left_out = read_pairs(path, tokenizer, longest - 1)
    assert (len(kept) + left_out, left_out > 0) == (10, True)
    with pytest.raises(UserError, match="no pair of at most 5 tokens"):
        read_pairs(path, tokenizer, 5)
    with pytest.raises(UserError, match="--set data=FILE"):
        read_pairs(tmp_path / "none", tokenizer, 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("beta=0", "beta is 0.0; it must be above 0"),
        ("bet=1", "unknown key 'bet'; did you mean beta?"),
        ("lora_r=8", "unknown key 'lora_r'"),
        ("adapter=", "adapter is missing"),
        ("model_name_or_path=", "model_name_or_path is missing"),
        ("seed=abc", "invalid int value: 'abc'"),
        ("beta", "write --set key=value"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_dpo_recipe(write_run(tmp_path, tmp_path, tmp_path), [override])


@pytest.mark.parametrize("name", ["quick", "full"])
def test_committed_recipes_parse(name: str) -> None:
    dpo = read(RECIPES / f"tools_dpo_{name}.yaml")
    assert dpo.extra.adapter == f"out/step4/tools_sft_{name}/adapter"
    assert dpo.output == Path(f"out/step4/tools_dpo_{name}")
    assert (dpo.extra.beta, dpo.training.learning_rate) == (0.1, 5e-5)
    grader = load_recipe(RECIPES / f"grader_sft_{name}.yaml", [])
    assert grader.output == Path(f"out/step4/grader_sft_{name}")
    assert (grader.lora().r, grader.lora().target_modules) == (16, "all-linear")


def test_qlora_is_refused_without_cuda_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from step4_finetune.qlora import quantization

    recipe = load_recipe(RECIPES / "qlora.yaml", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="load_in_4bit needs an NVIDIA GPU, and none is here"):
        quantization(recipe.model)
    assert quantization(load_recipe(RECIPES / "tools_sft_full.yaml", []).model) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package bitsandbytes"):
        quantization(recipe.model)


def test_ctrl_c_saves_and_the_same_command_goes_on(
    undisturbed: tuple[Path, Preferred], tiny_llama: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step4_finetune.preference_trainer import PreferenceTrainer

    compute, passes = PreferenceTrainer.compute_loss, []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        if len(passes) == 2 + 2:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, *args, **kwargs)

    recipe = write_run(tmp_path, tiny_llama, sft, checkpoint_minutes=60)
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(read(recipe))
    assert train(read(recipe)).resumed_from == 2
    assert_same(tmp_path / "out", undisturbed[0])
