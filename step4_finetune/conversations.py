"""What comes after a call: results, and the answer that is made of them; and conversations that go on.

A model that is only taught to call calls again when the results are there. So some examples end in the answer: the
figures of the results, restated, nothing added. Results are made up, but in the forms that real tools have: a sentence,
JSON, a reference number, an error.
"""

import json
from random import Random
from typing import Any

from step4_finetune.examples import answer_with_calls
from step4_finetune.questions import Call

Message = dict[str, Any]

UNITS = ("", "", " °C", " km", " EUR", " %", " kg", " points", " USD", " m²", " hours", " mph")
NOTES = ("", "", "", " (updated today)", ", clear sky", ", 2 sources", " (estimate)", ", rank 3")
ERRORS = (
    "no entry was found", "the service did not answer in time", "this place is not known", "access was denied",
    "there are no results for this date",
)  # fmt: skip


def after(question: str, calls: list[Call], rng: Random) -> tuple[list[Message], str]:
    """Continue a question with its calls and their results; return the messages so far and the answer to give."""
    made = [_result(call, rng) for call in calls]
    messages = [
        {"role": "user", "content": question},
        answer_with_calls(calls),
        *({"role": "tool", "tool_call_id": f"call_{n}", "content": text} for n, (text, _) in enumerate(made)),
    ]
    return messages, "\n".join(sentence for _, sentence in made)


def _result(call: Call, rng: Random) -> tuple[str, str]:
    """A tool's result, and the sentence that tells it."""
    name, arguments = call
    words = name.replace("_", " ")
    texts = [value for value in arguments.values() if isinstance(value, str) and len(value) < 40]
    subject = texts[0] if texts else words.capitalize()
    style = rng.random()
    if style < 0.08:
        reason = rng.choice(ERRORS)
        return f"error: {reason}", f"{subject}: that did not work, {reason}."
    if style < 0.2:
        code = f"{rng.choice('ABCDEFGH')}{rng.randint(1000, 99999)}"
        return f"Done. Reference {code}.", f"Done, the reference is {code}."
    number = round(rng.uniform(0.1, 100) * 10 ** rng.choice([0, 0, 1, 2]), rng.choice([0, 1, 2]))
    figure = f"{int(number) if number == int(number) else number}{rng.choice(UNITS)}"
    if style < 0.35:
        return json.dumps({"status": "ok", "result": figure}), f"{subject}: {figure}."
    text = f"{subject}: {figure}{rng.choice(NOTES)}"
    return text, f"{text}."
