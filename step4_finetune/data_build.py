"""Build the training data of the `tools` adapter: synthetic and real examples, checked, decontaminated, mixed.

`build` makes the training set, `held_out` the unseen-tool split (tools of domains that training never sees). The same
seed gives the same bytes. The default mixture follows what the probe got wrong: it called nearly always, so more than
a quarter of the examples have no call; and training time goes with tokens, so examples are short.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from shared.errors import UserError
from step4_finetune.decontaminate import Evaluation, evaluation, remove
from step4_finetune.examples import CALLS, NO_CALLS, Example, problem
from step4_finetune.function_specs import Function, functions
from step4_finetune.generator import Generator
from step4_finetune.real_data import bfcl_live, glaive

if TYPE_CHECKING:
    from shared.tokenizer import ChatTokenizer

# Groups of synthetic examples per kind (generator.SIBLINGS says what a group is); about 790 real examples come on top.
MIXTURE = {
    "single": 330, "multiple": 130, "parallel": 200, "parallel_multiple": 200,
    "no_tool": 170, "missing": 40, "small_talk": 15, "crowd": 105, "answer": 90,
}  # fmt: skip
# The same of the second hour's questions (second_lessons.py): longer ones, and more of several calls.
SECOND_MIXTURE = {
    "single": 250, "multiple": 110, "parallel": 280, "parallel_multiple": 320,
    "no_tool": 170, "missing": 30, "small_talk": 10, "crowd": 60, "answer": 40,
}  # fmt: skip
# The same of the third hour's, over three times as many functions, without the real examples.
THIRD_MIXTURE = {
    "single": 320, "multiple": 100, "parallel": 200, "parallel_multiple": 220,
    "no_tool": 110, "missing": 8, "small_talk": 4, "crowd": 8, "answer": 12,
}  # fmt: skip
HELD_OUT_MIXTURE = {"single": 65, "multiple": 24, "parallel": 22, "parallel_multiple": 18, "no_tool": 20}
ATTEMPTS = 4  # per wanted example; more refusals than that mean a broken domain file


@dataclass
class Report:
    """What a build left out. refused: reasons of the check. removed: overlaps with the evaluation, by source."""

    refused: Counter[str] = field(default_factory=Counter)
    removed: dict[str, Counter[str]] = field(default_factory=dict)
    examples_of_refusals: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Count another build's synthetic examples with this one's; the real ones are the same in both."""
        self.refused += other.refused
        self.removed["synthetic"] = self.removed.get("synthetic", Counter()) + other.removed.get("synthetic", Counter())
        self.examples_of_refusals += other.examples_of_refusals


def build(
    seed: int,
    counts: Mapping[str, int] | None = None,
    *,
    real: bool = True,
    maker: type[Generator] = Generator,
    chosen: Sequence[Function] | None = None,
) -> tuple[list[Example], Report]:
    """Build the training set. counts: synthetic groups per kind, MIXTURE if None. maker: who asks, about `chosen`.

    The order is the one to train in: shuffled, but examples that show the same tools stay neighbours, so that a batch
    of rows in this order shares as much as it can (collate.py). Any first part of it has about the same mixture.
    Fetches the leaderboard's data (and Glaive's, if real). Raises UserError for an unknown kind, and what fetch raises.
    """
    against = evaluation()
    report = Report()
    groups = synthesize(seed, counts or MIXTURE, against, report, maker=maker, chosen=chosen)
    if real:
        for source, examples in (("bfcl-live", bfcl_live()), ("glaive", glaive())):
            kept, report.removed[source] = remove(examples, against)
            groups += [[example] for example in kept]
    Random(seed).shuffle(groups)
    return [example for group in groups for example in group], report


def held_out(seed: int, counts: Mapping[str, int] | None = None) -> list[Example]:
    """Build the unseen-tool split: domains and functions that no training example has. Raises what build raises."""
    groups = synthesize(seed, counts or HELD_OUT_MIXTURE, evaluation(), Report(), held=True)
    return [example for group in groups for example in group]


def synthesize(
    seed: int,
    counts: Mapping[str, int],
    against: Evaluation,
    report: Report,
    *,
    held: bool = False,
    maker: type[Generator] = Generator,
    chosen: Sequence[Function] | None = None,
) -> list[list[Example]]:
    """Generate each kind's count of groups, of examples that pass the check and share nothing with the evaluation.

    chosen: the functions to ask about; without them the training domains', or with `held` the held-out ones.
    """
    unknown = counts.keys() - MIXTURE.keys()
    if unknown:
        raise UserError(f"there is no kind {sorted(unknown)[0]!r}; the kinds are {', '.join(MIXTURE)}")
    groups: list[list[Example]] = []
    seen: set[str] = set()
    for kind, count in counts.items():
        # A stream of its own for each kind, so that one count can change without changing the other kinds.
        generator = maker(chosen or functions(held), Random(f"{seed} {kind} {held}"))
        wanted, attempts = len(groups) + count, 0
        while len(groups) < wanted:
            attempts += 1
            if attempts > ATTEMPTS * count + 100:
                reasons = "; ".join(report.examples_of_refusals[-2:]) or "all overlap with the evaluation"
                raise UserError(f"too few {kind} examples pass the check ({reasons}); correct step4_finetune/domains/")
            group = [e for e in generator.group(kind, attempts) if _acceptable(e, against, report, seen)]
            if group:
                groups.append(group)
    return groups


def _acceptable(example: Example, against: Evaluation, report: Report, seen: set[str]) -> bool:
    reason = problem(example)
    if reason:
        report.refused[_short(reason)] += 1
        report.examples_of_refusals.append(f"{example.id}: {reason}")
        return False
    overlap = against.overlap(example)
    if overlap:
        report.removed.setdefault("synthetic", Counter())[overlap] += 1
        return False
    if example.question in seen and example.kind in CALLS:
        report.refused["the question was asked before"] += 1
        return False
    seen.add(example.question)
    return True


def _short(reason: str) -> str:
    """A reason without its values, for counting."""
    return "a value is not in the question" if "is not in the question" in reason else reason[:60]


def stats(examples: Sequence[Example], tokenizer: "ChatTokenizer | None" = None) -> dict[str, Any]:
    """Count examples by kind and source; with a tokenizer (the model's, with its template), tokens too.

    Token counts are of whole conversations as the model sees them; `answer` is the part that is trained on; `computed`
    is what is left of all tokens when a batch of 16 neighbours shares its beginnings.
    """
    total = len(examples) or 1
    kinds = Counter(example.kind for example in examples)
    result: dict[str, Any] = {
        "examples": len(examples),
        "kinds": dict(sorted(kinds.items())),
        "sources": dict(sorted(Counter(example.source for example in examples).items())),
        "no_call_share": round(sum(kinds[kind] for kind in NO_CALLS) / total, 3),
        "tools_per_example": round(sum(len(example.tools) for example in examples) / total, 2),
        "function_names": len({tool["function"]["name"] for example in examples for tool in example.tools}),
    }
    if tokenizer:
        encoded = token_ids(examples, tokenizer)
        whole = sorted(len(prompt) + len(answer) for prompt, answer in encoded)
        result["tokens"] = {
            "all": sum(whole), "mean": round(sum(whole) / total, 1), "median": whole[len(whole) // 2],
            "p95": whole[int(len(whole) * 0.95)], "longest": whole[-1],
            "answer_mean": round(sum(len(answer) for _, answer in encoded) / total, 1),
            "computed": distinct_tokens([prompt + answer for prompt, answer in encoded]),
        }  # fmt: skip
    return result


def token_ids(examples: Sequence[Example], tokenizer: "ChatTokenizer") -> list[tuple[list[int], list[int]]]:
    """Return the tokens of each example's prompt and of its answer."""
    pairs = []
    for example in examples:
        whole = tokenizer.render(example.template_messages(), tools=example.tools, add_generation_prompt=False)
        prompt = tokenizer.render(example.messages[:-1], tools=example.tools)
        pairs.append((tokenizer.encode(prompt), tokenizer.encode(whole.removeprefix(prompt))))
    return pairs


def distinct_tokens(sequences: Sequence[list[int]], batch: int = 16) -> int:
    """Count what a trainer computes that lays batches of neighbours out as prefix trees (collate.py)."""
    total = 0
    for start in range(0, len(sequences), batch):
        previous: list[int] = []
        for sequence in sorted(sequences[start : start + batch]):
            shared = next((i for i, (a, b) in enumerate(zip(previous, sequence, strict=False)) if a != b), None)
            total += len(sequence) - (min(len(previous), len(sequence)) if shared is None else shared)
            previous = sequence
    return total
