"""DPO's loss and gradients are trl's, and its log-probabilities those of each answer alone.

python -m pytest tests/step4/test_dpo_loss.py
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_world import read, write_run

from shared.tokenizer import ChatTokenizer


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
