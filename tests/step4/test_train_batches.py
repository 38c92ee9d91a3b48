"""The prefix-tree batch is the padded batch, computed more cheaply: same loss, same gradients; what is trained on."""

import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from shared.errors import UserError
from shared.tokenizer import ChatTokenizer
from step4_finetune.collate import Example, collate, encode, read_examples
from tests.step4.training_rows import rows

TEMPLATE = Path(__file__).parents[2] / "shared/templates/smollm2.jinja"
TOOL = {"type": "function", "function": {"name": "add", "description": "Add <two> & more.", "parameters": {}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "é <x>"}'}}


def examples(model: Path) -> list[Example]:
    tokenizer = ChatTokenizer(model)
    return [encode(row, tokenizer) for row in rows()]


@pytest.fixture
def with_tools(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny model's tokenizer with the real chat template."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tiny_llama / name).read_text())
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE.read_text())
    return tmp_path


def test_prompt_is_what_the_engine_renders_and_completion_ends_the_turn(with_tools: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = ChatTokenizer(with_tools)
    user = {"role": "user", "content": "Add 1 and é."}
    example = encode(
        {"id": 1, "messages": [user, {"role": "assistant", "tool_calls": [CALL]}], "tools": [TOOL]}, tokenizer
    )
    prompt = tokenizer.render([user], [TOOL])
    assert example.prompt == tokenizer.encode(prompt)
    theirs = PreTrainedTokenizerFast.from_pretrained(with_tools)
    assert prompt == theirs.apply_chat_template([user], tools=[TOOL], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(example.completion) == (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é <x>"}}\n</tool_call><|im_end|>'
    )


def test_collate_lays_out_a_tree() -> None:
    batch = collate([Example("1", [1, 2, 3, 4], [7, 9]), Example("2", [1, 2, 5], [9]), Example("3", [1, 2, 3, 6], [8])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 7, 9, 6, 8, 5, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 2, 3]]
    assert batch["labels"].tolist() == [7, 9, 8, 9]
    assert batch["predictors"].tolist() == [3, 4, 6, 8]  # the last prompt token predicts the first trained one
    layout = batch["layout"]
    assert layout.nodes == [2, 1, 3, 2, 2]
    assert layout.paths == [[0, 1, 2], [0, 1, 3], [0, 4]]
    assert layout.own == [6, 2, 2]


@pytest.mark.parametrize("fused", [False, True])
def test_tree_equals_padding(tiny_model: Path, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from step4_finetune import attention, output_loss
    from step4_finetune.lora_linear import fuse_lora
    from step4_finetune.trainer import forward_loss

    monkeypatch.setattr(output_loss, "ROWS", 4)  # several pieces, the last one not full
    torch.manual_seed(0)
    if (tiny_model / "chat_template.jinja").exists():
        batch = examples(tiny_model)[:6]
    else:  # a model without template: any ids will do
        pick = random.Random(0)
        start = [pick.randrange(3, 90) for _ in range(9)]
        batch = [Example(str(i), start[: 9 - i] + [i + 3] * (i + 1), [5, i + 4]) for i in range(6)]
    batch.append(batch[1])  # a row that comes twice counts twice

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = get_peft_model(plain, config)
    losses, gradients = [], []
    for tree in (False, True):
        model.zero_grad()
        if tree:
            attention.register()
            plain.set_attn_implementation(attention.NAME)
            if fused:
                assert fuse_lora(model) == 21  # 3 layers × 7 matrices
            inputs = collate(batch)
            assert inputs["input_ids"].shape[1] < 0.8 * sum(map(len, batch))
            loss = forward_loss(plain, **inputs)["loss"]
        else:
            loss = padded_loss(plain, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def padded_loss(model: torch.nn.Module, batch: list[Example]) -> torch.Tensor:
    """The usual way: right padding, an attention mask, -100 where nothing is trained."""
    length = max(map(len, batch))
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, e in enumerate(batch):
        ids[i, : len(e)] = torch.tensor(e.prompt + e.completion)
        mask[i, : len(e)] = 1
        labels[i, len(e.prompt) : len(e)] = torch.tensor(e.completion)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def test_rows_that_are_too_long_are_counted_and_broken_ones_named(tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(tiny_llama)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    lengths = sorted(map(len, examples(tiny_llama)))
    kept, left_out = read_examples(path, tokenizer, lengths[8])
    assert (len(kept), left_out) == (9, 3)
    with pytest.raises(UserError, match="no row of at most 5 tokens"):
        read_examples(path, tokenizer, 5)
    with pytest.raises(UserError, match="data=FILE"):
        read_examples(tmp_path / "none.jsonl", tokenizer, 100)
    for text, reason in [
        ("{", "line 1"),
        ('{"id": 1}', "'messages' is missing"),
        ('{"id": 1, "messages": [{"role": "user", "content": "x"}]}', "must be the assistant's"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=reason):
            read_examples(path, tokenizer, 100)
