"""DPO on batches laid out as prefix trees: a chosen and a rejected answer share their prompt, which is computed once.

The loss is that of Rafailov et al., "Direct Preference Optimization", 2023, equation 7; trl's DPOTrainer computes the
same (tests/step4/test_dpo_loss.py). What is different, for a small machine:
  - prompt and answers as a tree (collate.py): a pair costs its prompt once, not twice, and tools that several pairs of
    a batch have in common once;
  - logits for the answers only, and fused LoRA products (trainer.py, lora_linear.py);
  - the reference is the adapter that training starts from, so its log-probabilities are those of the first moment. They
    are computed once, before the first step, and kept on the disk: a third of an epoch's time, and no second model.
    trl keeps a second adapter in memory and asks it at every step.
"""

import json
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError
from shared.files import atomic_write
from shared.openai_protocol import ApiError
from shared.tokenizer import ChatTokenizer
from step4_finetune.collate import Example, Layout, collate, encode
from step4_finetune.dpo_recipe import DpoRecipe
from step4_finetune.trainer import CompletionTrainer

REFERENCE = "reference.json"  # in output_dir


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, as token ids."""

    id: str
    chosen: Example
    rejected: Example

    @property
    def tools(self) -> str:
        """See collate.Example: neighbours with the same tools are trained on together."""
        return self.chosen.tools

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


def read_pairs(path: Path, tokenizer: ChatTokenizer, max_length: int) -> tuple[list[Pair], int]:
    """Read a file of dpo_pairs.py; return the pairs and how many were left out as longer than max_length.

    Raises UserError for a missing file, a row of another form, and a pair whose two answers are the same.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the pairs with --set data=FILE") from None
    pairs = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            sides = [
                encode(
                    {"id": row["id"], "messages": [*row["messages"], row[side]], "tools": row.get("tools")}, tokenizer
                )
                for side in ("chosen", "rejected")
            ]
        except (json.JSONDecodeError, KeyError, TypeError, ApiError, UserError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}, line {number}: not a pair: {reason}") from None
        if sides[0].completion == sides[1].completion:
            raise UserError(f"{path}, line {number}: the chosen and the rejected answer are the same")
        pairs.append(Pair(str(row["id"]), *sides))
    kept = [pair for pair in pairs if max(len(pair.chosen), len(pair.rejected)) <= max_length]
    if not kept:
        raise UserError(f"{path}: no pair of at most {max_length} tokens; raise max_length or sample more answers")
    return kept, len(pairs) - len(kept)


def collate_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Lay out the answers of some pairs as one tree.

    Returns what collate returns, and owners [n]: for each trained token, which answer it belongs to; pair i has the
    answers 2 i (chosen) and 2 i + 1 (rejected).
    """
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    # The order in which `collate` lays them out; sorting is stable, so it keeps this one.
    order = sorted(range(len(answers)), key=lambda i: (answers[i].prompt, answers[i].completion))
    lengths = torch.tensor([len(answers[i].completion) for i in order])
    batch = collate([answers[i] for i in order])
    return batch | {"owners": torch.tensor(order).repeat_interleave(lengths), "answers": len(answers)}


def answer_log_probs(
    self: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    layout: Layout,
    predictors: Tensor,
    labels: Tensor,
    owners: Tensor,
    answers: int,
    **_: Any,
) -> dict[str, Tensor]:
    """A causal model's forward pass that ends in log p(answer | prompt) of every answer (a method put on the model)."""
    states = self.base_model(input_ids=input_ids, position_ids=position_ids, layout=layout, use_cache=False)[0]
    logits = self.get_output_embeddings()(states[0, predictors]).float()
    tokens = -F.cross_entropy(logits, labels, reduction="none")
    return {"log_probs": torch.zeros(answers, device=tokens.device).index_add(0, owners, tokens)}


class PreferenceTrainer(CompletionTrainer):
    """CompletionTrainer for pairs, with the DPO loss."""

    loss_is_scaled_for_ga = False  # it is a mean over pairs: the library averages the parts of a step

    def __init__(self, recipe: DpoRecipe, directory: Path, pairs: list[Pair], **kwargs: Any) -> None:
        self.pairs = pairs
        self.beta = recipe.extra.beta
        self.reference = torch.empty(0, 2)
        # What the parent does with examples (order by tools, count) goes for pairs too.
        super().__init__(recipe, directory, cast(list[Example], pairs), **kwargs)
        base = self.model.get_base_model()
        base.forward = types.MethodType(answer_log_probs, base)
        self.model_accepts_loss_kwargs = (
            False  # the loss is a mean over pairs: the library averages the parts of a step
        )

    def compute_reference(self) -> None:
        """Set the log-probabilities of the reference, from the file of an earlier process or by a pass over all pairs.

        Before training only: the model must be where it starts. With several processes each one computes all.
        """
        path = Path(self.args.output_dir) / REFERENCE
        if path.exists():
            self.reference = torch.tensor(json.loads(path.read_text()))
            return
        self.model.eval()
        found = []
        size = 2 * self.args.per_device_train_batch_size  # nothing is kept for a backward pass
        with torch.no_grad():
            for start in range(0, len(self.pairs), size):
                inputs = self._prepare_inputs(collate_pairs(self.pairs[start : start + size]))
                found.append(self.model(**inputs)["log_probs"].view(-1, 2).cpu())
        self.reference = torch.cat(found)
        if self.is_world_process_zero():
            atomic_write(path, json.dumps(self.reference.tolist()))

    def _collate(self, rows: list[dict[str, int]]) -> dict[str, Any]:
        places = [row["index"] for row in rows]
        chosen = [self.pairs[place] for place in places]
        return collate_pairs(chosen) | {
            "reference": self.reference[places],
            "sequence_tokens": sum(map(len, chosen)),
        }

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean DPO loss of the pairs: −log σ(β·(change of log p(chosen) − change of log p(rejected)))."""
        inputs = dict(inputs)
        self.throughput.sequence += inputs.pop("sequence_tokens")
        self.throughput.computed += inputs["input_ids"].shape[1]
        reference = inputs.pop("reference")
        outputs = model(**inputs)
        rewards = self.beta * (outputs["log_probs"].view(-1, 2) - reference)
        margins = rewards[:, 0] - rewards[:, 1]
        loss = -F.logsigmoid(margins).mean()
        # The names are trl's. SFTTrainer.log takes their means and clears them.
        for name, value in (
            ("rewards/accuracies", (margins > 0).float()),
            ("rewards/margins", margins),
            ("rewards/chosen", rewards[:, 0]),
            ("rewards/rejected", rewards[:, 1]),
        ):
            self._metrics["train"][name].append(value.detach().mean().item())
        return (loss, outputs) if return_outputs else loss
