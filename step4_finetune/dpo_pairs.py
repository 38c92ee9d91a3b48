"""Pairs for DPO, from a checker and not from opinion: what the tuned model says right, against what it says wrong.

The model answers each training prompt several times, with some randomness; the checker (checker.py) says which answers
are right. A right and a wrong answer to the same prompt make a pair. Where no answer is right, the gold answer can take
the place of one: that pair is counted apart, since the model would not have said it. Prompts that are answered right
every time make none: there is nothing to prefer.

    python -m step4_finetune.dpo_pairs out/step4/tools/prompts.jsonl out/step4/tools/pairs.jsonl \
        --adapter out/step4/tools_sft_quick/adapter --limit 400

Writes the pairs, PAIRS.report.json with the counts, and PAIRS.samples.jsonl with every answer as it comes: a killed run
is continued by the same command. Prompts should be new to the model (another seed of data_build): on those it was
trained on for three epochs, it is nearly always right.
"""

import argparse
import asyncio
import hashlib
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shared.errors import UserError
from shared.files import atomic_write
from shared.terminal import print_json, run, say
from step4_finetune.checker import judge
from step4_finetune.examples import Example, read_jsonl

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from shared.results import Row

Message = dict[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. model: the served name. answers: how many per prompt. adapter: hash of its weights."""

    model: str
    answers: int = 4
    temperature: float = 0.8
    seed: int = 0
    max_tokens: int = 300
    adapter: str = ""


@dataclass
class Report:
    """What came of it. right: answers; always_right, never_right: prompts. wrong: the checker's reasons."""

    prompts: int = 0
    answers: int = 0
    right: int = 0
    always_right: int = 0
    never_right: int = 0
    pairs: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


# -- sampling ------------------------------------------------------------------------------------------------------


async def sample(
    client: "AsyncOpenAI", sampling: Sampling, examples: Sequence[Example], path: Path, *, concurrency: int = 8
) -> dict[str, list[Message]]:
    """Ask for the answers that the file does not hold yet; return all, by the example's id.

    Every answer is written as it comes. A prompt that the endpoint refuses (too long for it) has none. Raises
    UserError when the file is of other settings, and when the endpoint fails: the answers so far, and those under way,
    are kept.
    """
    done = read_samples(path, sampling)
    missing = [e for e in examples if done.get(e.id, ("", []))[0] != asked(e)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        if path.stat().st_size == 0:
            _append(file, {"sampling": asdict(sampling)})
        queue, finished = iter(missing), 0
        failure: UserError | None = None

        async def worker() -> None:
            nonlocal finished, failure
            for example in queue:  # shared by all workers: each takes the next one
                try:
                    answers = await _ask(client, sampling, example)
                except UserError as error:
                    failure = failure or error
                    return
                done[example.id] = asked(example), answers
                _append(file, {"id": example.id, "asked": asked(example), "answers": answers})
                finished += 1
                if finished % 50 == 0:
                    say(f"{finished}/{len(missing)} prompts answered")
                if failure:  # another worker's: ask for no more, but keep what was asked for already
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(missing))):
                group.create_task(worker())
        if failure:
            raise failure
    return {example.id: done[example.id][1] for example in examples}


async def _ask(client: "AsyncOpenAI", sampling: Sampling, example: Example) -> list[Message]:
    import openai

    try:
        response = await client.chat.completions.create(
            model=sampling.model,
            messages=example.messages[:-1],  # type: ignore[arg-type]  # the client's types want one class per role
            tools=example.tools,  # type: ignore[arg-type]
            n=sampling.answers,
            temperature=sampling.temperature,
            seed=sampling.seed,
            max_tokens=sampling.max_tokens,
        )
    except openai.BadRequestError as error:
        say(f"{example.id} is refused: {error.message}")
        return []
    except openai.OpenAIError as error:
        raise UserError(f"the endpoint fails: {error}; the same command goes on from here", exit_code=1) from None
    # A cut-off answer is no answer: what is missing may have made it right.
    return [plain(c.message.model_dump()) for c in response.choices if c.finish_reason != "length"]


def plain(message: Mapping[str, Any]) -> Message:
    """The message as examples have theirs: content and calls, with numbered ids; random ones would change the bytes.

    A call whose arguments are not a JSON object becomes text, as the model wrote it: no template could render it.
    """
    content = message.get("content") or ""
    calls: list[dict[str, Any]] = []
    for call in message.get("tool_calls") or []:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        try:
            whole = isinstance(json.loads(arguments), dict)
        except json.JSONDecodeError:
            whole = False
        if whole:
            function = {"name": name, "arguments": arguments}
            calls.append({"id": f"call_{len(calls)}", "type": "function", "function": function})
        else:
            content += f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    answer: Message = {"role": "assistant", "content": content}
    return answer | {"tool_calls": calls} if calls else answer


def asked(example: Example) -> str:
    """A hash of what is asked, so that answers to another version of an example are not taken for answers to it."""
    text = json.dumps([example.messages[:-1], example.tools], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_samples(path: Path, sampling: Sampling) -> dict[str, tuple[str, list[Message]]]:
    """Return (hash of the prompt, answers) by id; {} for no file. A last line that was cut by a kill is removed.

    Raises UserError when the file holds answers drawn in another way.
    """
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines.pop():  # what a kill left behind its last line break
        atomic_write(path, "".join(f"{line}\n" for line in lines))
    try:
        rows = [json.loads(line) for line in lines]
        if rows and rows[0]["sampling"] != asdict(sampling):
            changed = sorted(k for k, v in asdict(sampling).items() if rows[0]["sampling"].get(k) != v)
            raise UserError(f"{path} holds answers with another {', '.join(changed)}; delete it, or write elsewhere")
        return {row["id"]: (row["asked"], row["answers"]) for row in rows[1:]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of answers ({error!r}); delete it, or write elsewhere") from None


def _append(file: IO[str], row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()


# -- pairs ---------------------------------------------------------------------------------------------------------


def make_pairs(
    examples: Iterable[Example], answers: Mapping[str, list[Message]], *, per_prompt: int = 1, gold: bool = True
) -> tuple[list[dict[str, Any]], Report]:
    """Make at most `per_prompt` pairs of each example, and count; no randomness.

    Rejected are the wrong answers that came most often, chosen the right answer that came most often, or with `gold`
    the gold answer where none was right. A row is {"id", "kind", "origin": "sampled" or "gold", "messages": the
    prompt, "tools", "chosen", "rejected": assistant messages}.
    """
    rows, report = [], Report()
    for example in examples:
        found = answers.get(example.id, [])
        verdicts = [judge(example, answer) for answer in found]
        right = _by_frequency(a for a, verdict in zip(found, verdicts, strict=True) if verdict.correct)
        wrong = _by_frequency(a for a, verdict in zip(found, verdicts, strict=True) if not verdict.correct)
        correct = sum(verdict.correct for verdict in verdicts)
        report.prompts += 1
        report.answers += len(found)
        report.right += correct
        report.always_right += bool(found) and correct == len(found)
        report.never_right += bool(found) and correct == 0
        report.wrong.update(verdict.kind for verdict in verdicts if not verdict.correct)
        origin = "sampled" if right else "gold"
        if not right and gold:
            right = [example.messages[-1]]
        for number, rejected in enumerate(wrong[:per_prompt] if right else []):
            report.pairs[origin] += 1
            report.kinds[example.kind] += 1
            rows.append(
                {"id": f"{example.id}/{number}", "kind": example.kind, "origin": origin,
                 "messages": example.messages[:-1], "tools": example.tools,
                 "chosen": right[0], "rejected": rejected}
            )  # fmt: skip
    return rows, report


def count_by_kind(
    examples: Sequence[Example], answers: Mapping[str, list[Message]], *, per_prompt: int = 1, gold: bool = True
) -> "list[Row]":
    """Count prompts, answers and the pairs that make_pairs makes of them, by kind of prompt and all together.

    A share of right answers has no interval: the answers to one prompt are not independent of each other.
    """
    from shared.results import metric

    kinds = {kind: [e for e in examples if e.kind == kind] for kind in dict.fromkeys(e.kind for e in examples)}
    rows: list[Row] = []
    for name, members in (kinds | {"all": list(examples)}).items():
        _, report = make_pairs(members, answers, per_prompt=per_prompt, gold=gold)
        share = 100 * report.right / report.answers if report.answers else None
        counts = {
            "always right": report.always_right, "never right": report.never_right,
            "pairs": sum(report.pairs.values()), "with the gold answer": report.pairs["gold"],
        }  # fmt: skip
        metrics = {"prompts": metric(report.prompts), "answers right": metric(share, unit="%")}
        rows.append({"name": name, "metrics": metrics | {key: metric(count) for key, count in counts.items()}})
    return rows


def _by_frequency(messages: Iterable[Message]) -> list[Message]:
    """Each message once, the most frequent first, and among equals the one that came first."""
    counts = Counter(json.dumps(message, ensure_ascii=False) for message in messages)
    return [json.loads(text) for text, _ in counts.most_common()]


def write_pairs(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write one JSON object a line; same pairs, same bytes."""
    atomic_write(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def spread(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """At most `limit` examples, evenly spaced, so that all kinds are among them."""
    count = min(limit or len(examples), len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def main() -> None:
    """Run from the command line; --json prints the report as one document on stdout."""
    parser = argparse.ArgumentParser(prog="python -m step4_finetune.dpo_pairs", description="Make pairs for DPO.")
    parser.add_argument("prompts", type=Path, help="examples of data_build")
    parser.add_argument("pairs", type=Path, help="the file to write")
    parser.add_argument("--adapter", type=Path, help="LoRA directory of the tuned model, for the embedded engine")
    parser.add_argument("--model", help="the model, or the name under which an endpoint serves the tuned one")
    parser.add_argument("--limit", type=int, help="so many prompts, evenly spaced")
    parser.add_argument("--answers", type=int, default=Sampling.answers, help="answers per prompt")
    parser.add_argument("--temperature", type=float, default=Sampling.temperature)
    parser.add_argument("--seed", type=int, default=Sampling.seed)
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time")
    parser.add_argument("--per-prompt", type=int, default=1, help="pairs per prompt at most")
    parser.add_argument("--no-gold", action="store_true", help="no pair where no answer is right")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the counts by kind as results JSON")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = _run(options)
    if options.json:
        print_json(vars(report))
    else:
        say(f"{report.right}/{report.answers} answers right; {sum(report.pairs.values())} pairs "
            f"({report.pairs['gold']} of them with the gold answer): {options.pairs}")  # fmt: skip


def _run(options: argparse.Namespace) -> Report:
    import openai

    from shared.endpoint import connect
    from shared.results import write_results

    examples = spread(read_jsonl(options.prompts), options.limit)
    adapter = ""
    if options.adapter:
        try:
            adapter = hashlib.sha256((options.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
        except OSError as error:
            raise UserError(f"--adapter {options.adapter}: no LoRA adapter is there ({error.strerror})") from None
    with connect(options.model, [options.adapter] if options.adapter else []) as endpoint:
        # The embedded engine serves an adapter under its folder's name; another endpoint has names of its own.
        name = options.adapter.resolve().name if options.adapter and endpoint.engine else endpoint.model
        sampling = Sampling(name, options.answers, options.temperature, options.seed, adapter=adapter)
        samples = options.pairs.with_suffix(".samples.jsonl")

        async def draw() -> dict[str, list[Message]]:
            async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
                return await sample(client, sampling, examples, samples, concurrency=options.concurrency)

        answers = asyncio.run(draw())
    per_prompt, gold = options.per_prompt, not options.no_gold
    rows, report = make_pairs(examples, answers, per_prompt=per_prompt, gold=gold)
    write_pairs(rows, options.pairs)
    atomic_write(options.pairs.with_suffix(".report.json"), json.dumps(vars(report), indent=1))
    if options.results:
        write_results(
            options.results,
            command=shlex.join(["python", "-m", "step4_finetune.dpo_pairs", *sys.argv[1:]]),
            rows=count_by_kind(examples, answers, per_prompt=per_prompt, gold=gold),
            n=report.prompts,
            packages=("torch", "openai"),
        )
    return report


if __name__ == "__main__":
    run(main)
