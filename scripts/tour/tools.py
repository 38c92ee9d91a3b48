"""Chapter 2: questions that need a tool. The base model, the base model held to a grammar, and the adapter of step 4.

The questions are the tour's own, in the leaderboard's form, so that step 2's scorer judges them; none is from an
evaluation. What is said about them is what happened in this run.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scripts.tour.findings import Chapter, Stage, Table, Talk, Text, Verdict
from shared.errors import UserError
from shared.foreign_text import one_line

if TYPE_CHECKING:
    from shared.bfcl import Item
    from step2_tool_calling.evaluate import Outcome

ADAPTER = "tools"
THRESHOLD = 0.5  # the adapter calls from this probability on; the base model, asked so, would hardly ever call


def _function(name: str, description: str, **properties: str) -> dict[str, Any]:
    """A function of required text or number parameters, described as the leaderboard does: "float: what it is"."""
    described = {
        key: {"type": kind, "description": words}
        for key, (kind, _, words) in ((key, text.partition(": ")) for key, text in properties.items())
    }
    return {
        "name": name,
        "description": description,
        "parameters": {"type": "dict", "properties": described, "required": list(described)},
    }


WEATHER = _function("get_weather", "Get the current weather of a city.", city="string: Name of the city")
MONEY = _function(
    "convert_currency", "Convert an amount of money from one currency to another.",
    amount="float: Amount to convert", from_currency="string: Code of the currency it is in, such as EUR",
    to_currency="string: Code of the currency wanted, such as USD",
)  # fmt: skip
TABLE = _function(
    "book_table", "Reserve a table at a restaurant.", restaurant="string: Name of the restaurant",
    guests="integer: Number of guests", time="string: Time of day, such as 19:30",
)  # fmt: skip
REMINDER = _function(
    "set_reminder", "Remind the user of something later.", text="string: What to remind of",
    minutes="integer: Minutes from now",
)  # fmt: skip

# (question, its tool, acceptable values of each argument); None: no tool fits, and the right answer is not to call.
QUESTIONS: Sequence[tuple[str, dict[str, Any], dict[str, list[Any]] | None]] = (
    ("What's the weather in Lisbon right now?", WEATHER, {"city": ["Lisbon"]}),
    ("Please book a table for 4 guests at Trattoria Roma at 19:30.", TABLE,
     {"restaurant": ["Trattoria Roma"], "guests": [4], "time": ["19:30"]}),
    ("Set a reminder 'call mum' in 30 minutes.", REMINDER, {"text": ["call mum", "Call mum"], "minutes": [30]}),
    ("Convert 250 USD to JPY.", MONEY, {"amount": [250, 250.0], "from_currency": ["USD"], "to_currency": ["JPY"]}),
    ("Who painted the Mona Lisa?", MONEY, None),
    ("What is the tallest mountain in Africa?", TABLE, None),
)  # fmt: skip


def items() -> "list[Item]":
    """The questions in the leaderboard's form."""
    from shared.bfcl import make_item

    made = []
    for number, (question, function, gold) in enumerate(QUESTIONS):
        asked = {"id": f"tour_{number}", "question": [[{"role": "user", "content": question}]], "function": [function]}
        answer = None if gold is None else {"ground_truth": [{function["name"]: gold}]}
        made.append(make_item("irrelevance" if gold is None else "simple_python", asked, answer))
    return made


def perform(stage: Stage) -> None:
    """Ask every question three ways and say which were right."""
    from shared.endpoint import connect, published_adapter
    from step2_tool_calling.evaluate import at_threshold

    adapter = published_adapter(ADAPTER, stage.model)
    if adapter is None:
        raise UserError(f"shared/adapters has no {ADAPTER!r} for {stage.model}; step 4 trains one: make step4")
    questions = items()
    with connect(stage.model, [adapter], quiet=True) as endpoint:

        async def ask() -> "list[list[Outcome]]":
            return [
                await _ask(endpoint, endpoint.model, "native", questions),
                await _ask(endpoint, endpoint.model, "constrained", questions),
                await _ask(endpoint, adapter.name, "constrained", questions),
            ]

        free, forced, tuned = asyncio.run(ask())
    tuned = [at_threshold(outcome, THRESHOLD) for outcome in tuned]
    _narrate(stage, questions, free, forced, tuned)


async def _ask(endpoint: Any, name: str, strategy: Any, questions: "Sequence[Item]") -> "list[Outcome]":
    from openai import AsyncOpenAI

    from step2_tool_calling.evaluate import answer_item
    from step2_tool_calling.prompts import load_prompt
    from step2_tool_calling.strategies import Model

    async with AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        model = Model(client, name, max_tokens=128)
        return [await answer_item(item, model, strategy, load_prompt("plain")) for item in questions]


def _narrate(
    stage: Stage,
    questions: "Sequence[Item]",
    free: "Sequence[Outcome]",
    forced: "Sequence[Outcome]",
    tuned: "Sequence[Outcome]",
) -> None:
    from step2_tool_calling.evaluate import verdict

    def right(outcomes: "Sequence[Outcome]") -> list[bool]:
        return [verdict(item, outcome).correct for item, outcome in zip(questions, outcomes, strict=True)]

    needs = [item.gold is not None for item in questions]
    columns = [right(outcomes) for outcomes in (free, forced, tuned)]
    # What the chapter is about: a question that the bare model fails and the adapter gets; the first one, if none is.
    shown = next((n for n, need in enumerate(needs) if need and not columns[0][n] and columns[2][n]), 0)
    question = QUESTIONS[shown][0]
    stage.show(
        Talk([("you", question), (f"{stage.model}", said(free[shown])), ("with the adapter", said(tuned[shown]))])
    )
    if columns[2][shown] and not columns[0][shown]:
        words = (
            "The base model talks about it and calls nothing right; with the adapter the same weights make the call."
        )
        stage.show(Verdict(True, words))
    else:
        stage.show(Verdict(False, "No question failed without the adapter and worked with it in this run."))
    counts = [sum(column) for column in columns]
    stage.show(
        Text(
            f"All {len(questions)} questions, each with one tool; {sum(needs)} need it, {len(questions) - sum(needs)} "
            "have nothing to do with it and should be left alone. Forced: the same base model, held to the tool's "
            "schema by a grammar and made to call. That mends the form; it cannot know when not to call."
        )
    )
    rows = [
        [QUESTIONS[n][0], *(f"{'✓' if column[n] else '✗'} {said(outcomes[n])}" for column, outcomes in
                            zip(columns, (free, forced, tuned), strict=True))]
        for n in range(len(questions))
    ]  # fmt: skip
    rows.append(["right", *(f"{count} of {len(questions)}" for count in counts)])
    stage.show(Table(f"The tour's own questions, n = {len(questions)}", ["", "base", "base, forced", "adapter"], rows))
    stage.show(
        Text(
            "Six questions are an illustration, not a measurement. The measured answer, 1,240 questions of the "
            "Berkeley leaderboard with intervals, is in step2_tool_calling/README.md."
        )
    )


def said(outcome: "Outcome") -> str:
    """An outcome in one line: its calls, else its text."""
    calls = []
    for call in outcome.calls:
        try:
            arguments = ", ".join(
                f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in json.loads(call["arguments"]).items()
            )
        except (ValueError, AttributeError):
            arguments = call["arguments"]
        calls.append(f"{call['name']}({arguments})")
    if calls:
        return one_line("; ".join(calls), 160)
    return "(no call)" if not outcome.content.strip() else one_line(outcome.content, 160)


CHAPTER = Chapter(
    "tools",
    "A tool call: failing, then working",
    [
        "A tool call is text in an agreed form. A model that was never taught the form talks instead; one that is "
        "forced into it calls even where nothing fits.",
        "The adapter “tools” is step 4's work: 10 MB beside the same weights, trained for 135 minutes on two cores.",
    ],
    ["make step2", ".venv/bin/python -m step2_tool_calling eval --prompts plain --limit 20"],
    perform,
)
