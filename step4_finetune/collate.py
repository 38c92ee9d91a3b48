"""From rows of conversations to batches without padding, in which a shared beginning is computed once.

Every prompt of one task starts alike (the system message, the tool instructions, often the same tools). In a causal
model the states of equal beginnings are equal, and the gradient of a sum is the sum of the gradients, so a batch can
be laid out as a prefix tree (trie): one flat list of tokens, in which each sequence owns only what no earlier sequence
had. The result is the same as padding, up to rounding; the work is what the distinct tokens cost.

    prompt "ab|c|x", "ab|c|y", "ab|d"   →   tokens  a b c x y d     (6 rather than 11 computed)

What is trained on is the completion: what the engine would generate after its prompt, up to and with <|im_end|>.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import UserError
from shared.openai_protocol import ApiError, plain_messages
from shared.tokenizer import ChatTokenizer

Span = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One conversation as token ids: what the model is given, and what it is to answer.

    tools: the tools as text, or else the row's `family`, or nothing; neighbours in the data with the same ones are
    trained on together (trainer.py), since they begin alike.
    """

    id: str
    prompt: list[int]
    completion: list[int]
    tools: str = ""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a batch lie in its flat list of tokens; what the attention needs (attention.py).

    nodes: lengths of the pieces the flat list is cut into, in order.
    paths: per sequence, the nodes that spell it. own: per sequence, how many tokens it adds to the flat list.
    masks: per sequence, bool [own, length], True where a query may look; None where plain causal attention does.
    """

    nodes: list[int]
    paths: list[list[int]]
    own: list[int]
    masks: list[Tensor | None]

    def to(self, device: torch.device | str, **_: Any) -> "Layout":
        """The same on another device (accelerate calls this, with arguments of its own)."""
        return Layout(self.nodes, self.paths, self.own, [m if m is None else m.to(device) for m in self.masks])


def read_examples(path: Path, tokenizer: ChatTokenizer, max_length: int) -> tuple[list[Example], int]:
    """Read a JSONL file of conversations; return the examples and how many were left out as longer than max_length.

    A row is {"id", "messages": OpenAI messages, the last one the assistant's, "tools": OpenAI tools or absent}.
    Raises UserError for a missing file and for a row that is not that.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the data file with --set data=FILE") from None
    examples = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                examples.append(encode(json.loads(line), tokenizer))
            except (json.JSONDecodeError, KeyError, TypeError, ApiError, UserError) as error:
                reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{path}, line {number}: not a training row: {reason}") from None
    kept = [example for example in examples if len(example) <= max_length]
    if not kept:
        raise UserError(f"{path}: no row of at most {max_length} tokens; raise max_length or give other data")
    return kept, len(examples) - len(kept)


def encode(row: dict[str, Any], tokenizer: ChatTokenizer) -> Example:
    """Render one row with the model's chat template and tokenise prompt and completion apart, as the engine does."""
    messages = plain_messages(row["messages"])
    tools = row.get("tools")
    if not messages or messages[-1]["role"] != "assistant":
        raise UserError("the last message must be the assistant's")
    prompt = tokenizer.render(messages[:-1], tools)
    whole = tokenizer.render(messages, tools, add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise UserError("the chat template writes the prompt differently once the answer is there")
    # Templates put a line break after the end-of-turn token; generation stops before it.
    completion = whole[len(prompt) :].rstrip()
    if not completion:
        raise UserError("the answer is empty")
    family = json.dumps(tools) if tools else str(row.get("family", ""))
    return Example(str(row["id"]), tokenizer.encode(prompt), tokenizer.encode(completion), family)


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """Lay out a batch as a prefix tree.

    Returns input_ids and position_ids [1, tokens], layout, and per trained token its id (labels [n]) and the place in
    the flat list whose state predicts it (predictors [n]).
    """
    flat: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    predictors: list[int] = []
    spans: list[list[Span]] = []
    shared_lengths: list[int] = []
    previous: list[int] = []
    # Sorted, the longest beginning that a sequence shares with any earlier one is shared with the one just before.
    for example in sorted(examples, key=lambda e: (e.prompt, e.completion)):
        ids = example.prompt + example.completion
        shared = min(_common(previous, ids), len(ids) - 1)
        path = _cut(spans[-1], shared) if shared else []
        path.append((len(flat), len(flat) + len(ids) - shared))
        flat += ids[shared:]
        positions += range(shared, len(ids))
        places = [place for start, stop in path for place in range(start, stop)]
        labels += example.completion
        predictors += places[len(example.prompt) - 1 : -1]
        spans.append(path)
        shared_lengths.append(shared)
        previous = ids

    cuts = sorted({place for path in spans for span in path for place in span})
    node_at = {start: index for index, start in enumerate(cuts)}
    paths = [[n for a, b in path for n in range(node_at[a], node_at[b])] for path in spans]
    own = [path[-1][1] - path[-1][0] for path in spans]
    masks = [_mask(n, shared) for n, shared in zip(own, shared_lengths, strict=True)]
    return {
        "input_ids": torch.tensor([flat]),
        "position_ids": torch.tensor([positions]),
        "labels": torch.tensor(labels),
        "shift_labels": torch.tensor(labels),  # the same: tells transformers that its count needs no shift
        "predictors": torch.tensor(predictors),
        "layout": Layout([b - a for a, b in itertools.pairwise(cuts)], paths, own, masks),
    }


def _common(a: list[int], b: list[int]) -> int:
    """The length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _cut(spans: list[Span], length: int) -> list[Span]:
    """The first `length` places of a path."""
    result = []
    for start, stop in spans:
        if length > 0:
            result.append((start, min(stop, start + length)))
        length -= stop - start
    return result


def _mask(own: int, shared: int) -> Tensor | None:
    return torch.ones(own, shared + own, dtype=torch.bool).tril(shared) if shared else None
