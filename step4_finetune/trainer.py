"""trl's SFTTrainer on batches laid out as prefix trees, with logits for trained tokens only.

What is changed, and why (each row measured in results/, against the plain SFTTrainer with the same data and batch):
  - no padding, and beginnings that several sequences of a batch share are computed once (collate.py, attention.py);
  - the hidden states are selected before the output head: its 49,152 rows cost as much as nine layers, and a prompt
    token has no loss;
  - LoRA's products without extra passes (lora_linear.py);
  - a checkpoint is marked complete when it is, so that a kill in the middle of writing one is survived.
Optimiser, schedule, clipping, accumulation, data order, resuming and several processes stay the library's.
"""

import itertools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback, Trainer, set_seed
from trl import SFTTrainer

from shared.errors import UserError
from shared.files import atomic_directory, atomic_write
from step4_finetune import attention
from step4_finetune.collate import Example, Layout, collate
from step4_finetune.lora_linear import fuse_lora
from step4_finetune.output_loss import head_loss
from step4_finetune.qlora import quantization
from step4_finetune.recipe import Recipe

COMPLETE = "complete"  # an empty file in a checkpoint directory, written last


@dataclass
class Throughput:
    """Tokens seen so far in this process: of the conversations, and what was computed for them."""

    sequence: int = 0
    computed: int = 0


class FamilySampler(torch.utils.data.Sampler[int]):
    """Shuffles the data anew each epoch, but keeps together neighbours that show the model the same tools.

    A batch then computes those tools once, and holds questions that differ where the tools do not. The order depends
    on seed and epoch alone, so a resumed run meets the batches it would have met.
    """

    def __init__(self, trainer: "CompletionTrainer") -> None:
        self._trainer = trainer

    def __len__(self) -> int:
        return len(self._trainer.examples)

    def __iter__(self) -> Iterator[int]:
        examples, state = self._trainer.examples, self._trainer.state
        # Rows without tools are a family each: those are shuffled like any data.
        runs = itertools.groupby(range(len(examples)), key=lambda i: examples[i].tools or i)
        families = [list(run) for _, run in runs]
        generator = torch.Generator().manual_seed(self._trainer.args.seed + 1000 * int(state.epoch or 0))
        for index in torch.randperm(len(families), generator=generator).tolist():
            yield from families[index]


class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer for examples from collate.py."""

    def __init__(self, recipe: Recipe, directory: Path, examples: list[Example], **kwargs: Any) -> None:
        from datasets import Dataset

        model = load_model(recipe, directory)
        self.examples = examples
        self.throughput = Throughput()
        recipe.training.dataset_kwargs = {"skip_prepare_dataset": True}
        super().__init__(
            model=model,
            args=recipe.training,
            # The rows are numbers: the examples are in memory already, and the library's own preparation would cache
            # copies of them on the disk. The other column keeps its vision check quiet.
            train_dataset=Dataset.from_dict({"index": list(range(len(examples)))}),
            data_collator=self._collate,
            processing_class=load_tokenizer(directory),
            **kwargs,
        )
        self.remove_callback(PrinterCallback)  # prints to stdout
        base = self.model.get_base_model()
        base.forward = types.MethodType(forward_loss, base)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole step, not of its part

    def _collate(self, rows: list[dict[str, int]]) -> dict[str, Any]:
        chosen = [self.examples[row["index"]] for row in rows]
        return collate(chosen) | {"sequence_tokens": sum(map(len, chosen))}

    def _get_train_sampler(self, train_dataset: Any = None) -> FamilySampler:
        return FamilySampler(self)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean loss over the trained tokens of the step."""
        inputs = dict(inputs)
        self.throughput.sequence += inputs.pop("sequence_tokens")
        self.throughput.computed += inputs["input_ids"].shape[1]
        outputs = model(**inputs)
        total = len(inputs["labels"]) if num_items_in_batch is None else num_items_in_batch
        loss = outputs["loss"] / total
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # total counts all processes' tokens; DDP takes the mean
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # not trl's, which writes a model card each time
        if self.args.should_save:
            atomic_write(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / COMPLETE, "")


def forward_loss(
    self: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    layout: Layout,
    predictors: Tensor,
    labels: Tensor,
    **_: Any,
) -> dict[str, Tensor]:
    """A causal model's forward pass that ends in the summed loss of the trained tokens (a method put on the model)."""
    states = self.base_model(input_ids=input_ids, position_ids=position_ids, layout=layout, use_cache=False)[0]
    return {"loss": head_loss(states[0, predictors], self.get_output_embeddings().weight, labels)}


def load_model(recipe: Recipe, directory: Path) -> torch.nn.Module:
    """The frozen base model in its dtype, with float32 LoRA matrices on it: fresh ones, or those of recipe.start."""
    packed = quantization(recipe.model)  # refuses 4 bits where they cannot be trained on
    attention.register()
    set_seed(recipe.training.seed)  # A starts random
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=getattr(torch, choose_dtype(recipe.model.dtype)),
        attn_implementation=attention.NAME,
        local_files_only=True,
        quantization_config=packed,
        device_map={"": recipe.training.local_process_index} if packed else None,  # packed weights cannot be moved
    )
    adapted = get_peft_model(model, recipe.lora())
    if recipe.start:
        load_adapter(adapted, recipe.start)
    fuse_lora(adapted)
    return adapted


def load_adapter(model: Any, path: Path) -> None:
    """Put an adapter's weights into the model's LoRA layers. Raises UserError when they are of another shape."""
    weights = load_file(path)
    try:
        result = set_peft_model_state_dict(model, weights)
    except RuntimeError:
        raise UserError(f"{path} is not an adapter of this model: its matrices have other shapes") from None
    ours = sum("lora_" in name for name, _ in model.named_parameters())
    if result.unexpected_keys or len(weights) != ours:
        raise UserError(f"{path} is not an adapter of this model: it has {len(weights)} matrices, {ours} are wanted")


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The library's tokenizer, which the trainer asks for and does not use; padding needs some token."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def choose_dtype(asked: str | None) -> str:
    """The dtype of the frozen weights: bfloat16 where hardware multiplies it, float32 elsewhere.

    An EPYC Milan, which has no bfloat16 arithmetic: 1 to 20 GFLOP/s in bfloat16, 60 to 150 in float32.
    """
    from shared.models import choose_device, choose_dtype

    return choose_dtype(asked or "auto", choose_device("auto").value, published=False).value


def save_adapter(model: Any, target: Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors (bfloat16: half the size, rounded once) in one step.

    base: the model as the recipe names it, which is written down rather than this machine's path to it.
    """
    from safetensors.torch import load_file, save_file

    model.peft_config["default"].base_model_name_or_path = base

    with atomic_directory(target) as folder:
        # Without `False`, peft asks the Hub whether the vocabulary has grown.
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; publishing writes a real one
        path = folder / "adapter_model.safetensors"
        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


def last_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = [marker.parent for marker in output.glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)
