"""Synthetic function-calling conversations: questions with known right answers, in the kinds real ones come in.

single             one tool, one call
multiple           one call, the right tool among two to four, half of the others from the same domain
parallel           the same tool several times
parallel_multiple  several different tools in one message
no_tool            tools that cannot do what is asked: unrelated ones, and near misses of the same domain
missing            the right tool, but a required value is not in the question: the answer asks for it
small_talk         a greeting with tools present
crowd              any of these, of six to nine tools at a time, as an application offers them; some after an exchange
answer             the calls were made and the results are there: say what they say

Examples come in groups that show the same tools: another question for them, and one they cannot serve. Such pairs
leave no short cut but to compare question and tool; and the trainer computes the shared beginning of a batch only once
(collate.py), so the second question of a group costs about a quarter of the first.

A seed fixes everything. Nothing here looks at the evaluation data; step4_finetune/decontaminate.py does, afterwards.
"""

import re
from collections.abc import Sequence
from random import Random
from typing import Any

from step4_finetune.conversations import Message, after
from step4_finetune.examples import Example, answer_with_calls
from step4_finetune.function_specs import Function, no_tool_requests
from step4_finetune.paraphrases import SMALL_TALK, ask_for, refusal, say, say_together
from step4_finetune.questions import Call, Questions
from step4_finetune.schema_variants import Dressed, dress
from step4_finetune.value_pools import draw, parse_pool, words_of

# What else is asked about the tools of an example: (kind, how often).
SIBLINGS: dict[str, tuple[tuple[str, float], ...]] = {
    "single": (("single", 0.45), ("no_tool", 0.6)),
    "multiple": (("multiple", 0.9), ("multiple", 0.4), ("no_tool", 0.4), ("parallel_multiple", 0.1)),
    "parallel": (("single", 0.45), ("parallel", 0.4)),
    "parallel_multiple": (("multiple", 0.6), ("parallel_multiple", 0.35), ("no_tool", 0.15)),
    "crowd": (
        ("multiple", 1), ("multiple", 1), ("multiple", 0.5), ("parallel", 1), ("parallel_multiple", 1),
        ("parallel_multiple", 0.5), ("no_tool", 1), ("answer", 1),
    ),
    "answer": (("single", 0.5), ("no_tool", 0.3)),
}  # fmt: skip
FIRST = {"crowd": "multiple"}  # what the first example of a group is, where the group's kind is none of an example

Made = tuple[str, list[Call], str]  # question, calls, and the text where there is none


class Generator:
    """Makes groups of examples from function specifications, all from one random stream."""

    ASKER = Questions
    TIMES: Sequence[int] = (2, 2, 2, 3, 3, 4)  # how often a parallel question wants its function
    FUNCTIONS: Sequence[int] = (2, 2, 2, 3)  # how many functions a parallel_multiple question wants
    TWICE = 0.12  # of those, how many are wanted twice

    def __init__(self, functions: Sequence[Function], rng: Random) -> None:
        self.rng = rng
        self.functions = functions
        self.by_domain: dict[str, list[Function]] = {}
        for function in functions:
            self.by_domain.setdefault(function.domain, []).append(function)
        self.domains = list(self.by_domain)
        self.questions = self.ASKER(rng)

    def group(self, kind: str, number: int) -> list[Example]:
        """Make an example of a kind, and its siblings with the same tools. Each has to pass examples.problem."""
        self.questions.begin()
        made, tools = getattr(self, f"_{kind}")()
        tools = self.rng.sample(tools, len(tools))
        shown = [dressed.tool for dressed in tools]
        examples = [self._example(f"synthetic-{kind}-{number}", FIRST.get(kind, kind), made, shown)]
        for sibling, share in SIBLINGS.get(kind, ()):
            if self.rng.random() < share:
                self.questions.begin()
                earlier = self._exchange(tools) if kind == "crowd" and self.rng.random() < 0.25 else []
                again = self._sibling(sibling, tools)
                sibling = "multiple" if sibling == "single" and len(tools) > 1 else sibling
                examples.append(self._example(f"{examples[0].id}.{len(examples)}", sibling, again, shown, earlier))
        return examples

    def _sibling(self, kind: str, tools: list[Dressed]) -> Made:
        if kind == "no_tool":
            return self._unserved(tools)
        if kind == "parallel" and len(tools) > 1:
            question, calls = self.questions.again(self.rng.choice(tools), self.rng.choice([2, 2, 3]))
            return question, calls, ""
        return self._several(tools) if kind.startswith("parallel") else self._another(tools)

    def _example(
        self, name: str, kind: str, made: Made, tools: list[Any], earlier: list[Message] | None = None
    ) -> Example:
        question, calls, text = made
        messages = [*(earlier or []), {"role": "user", "content": question}]
        if kind == "answer":
            told, text = after(question, calls, self.rng)
            messages[-1:] = told
            calls = []
        answer = answer_with_calls(calls) if calls else {"role": "assistant", "content": text}
        return Example(name, "synthetic", kind, [*messages, answer], tools, self.questions.normalised)

    def _exchange(self, tools: list[Dressed]) -> list[Message]:
        """An earlier question of the conversation, called, answered and done with."""
        question, calls, _ = self._another(tools)
        messages, text = after(question, calls, self.rng)
        return [*messages, {"role": "assistant", "content": text}]

    # -- kinds: what is asked, and the tools it is asked of --------------------------------------------------------

    def _single(self) -> tuple[Made, list[Dressed]]:
        dressed, question, calls = self.questions.ask(self._function(), 1)
        return (say(question, self.rng), calls, ""), [dressed]

    def _multiple(self) -> tuple[Made, list[Dressed]]:
        dressed, question, calls = self.questions.ask(self._function(), 1)
        others = self._beside([dressed], self.rng.choice([1, 1, 1, 1, 2, 2, 2, 3]))
        return (say(question, self.rng), calls, ""), [dressed, *others]

    def _parallel(self) -> tuple[Made, list[Dressed]]:
        return self._ask_times(self.rng.choice(self.TIMES))

    def _parallel_multiple(self) -> tuple[Made, list[Dressed]]:
        chosen = [self._function()]
        number = self.rng.choice(self.FUNCTIONS)
        near = self.by_domain[chosen[0].domain]
        while len(chosen) < number:
            candidate = self.rng.choice(near) if self.rng.random() < 0.35 else self._function()
            if candidate not in chosen:
                chosen.append(candidate)
        # A function may be called twice, if its templates can say so inside one sentence.
        times = [2 if "<" in f.templates[0] and self.rng.random() < self.TWICE else 1 for f in chosen]
        parts = [self.questions.ask(f, n, whole=False) for f, n in zip(chosen, times, strict=True)]
        tools = [dressed for dressed, _, _ in parts]
        question = say_together([question for _, question, _ in parts], self.rng)
        calls = [call for _, _, calls in parts for call in calls]
        return (question, calls, ""), tools + self._beside(tools, self.rng.choice([0, 0, 0, 0, 1]))

    def _no_tool(self) -> tuple[Made, list[Dressed]]:
        # One tool is the hard and the usual case: then only its purpose says no, there is nothing to choose.
        tools = self._dressed(self._others(self.rng.choice([1, 1, 1, 1, 1, 2, 3]), exclude=set()))
        return self._unserved(tools), tools

    def _missing(self) -> tuple[Made, list[Dressed]]:
        function = self._function()
        needed = [a.key for a in function.arguments if not a.optional and a.pool.kind != "enum"]
        if not needed:
            return self._missing()
        dressed = dress(function, self.rng)
        left_out = needed if len(needed) == 1 or self.rng.random() < 0.5 else [self.rng.choice(needed)]
        if left_out == needed:
            question = say(f"{function.does}.", self.rng)
        else:
            said = [key for key in dressed.names if key in dressed.required and key not in left_out]
            question, _ = self.questions.spelled_out(dressed, said)
        text = ask_for([words_of(dressed.names[key]) for key in left_out], self.rng)
        return (question, [], text), [dressed, *self._beside([dressed], self.rng.choice([0, 0, 0, 1]))]

    def _small_talk(self) -> tuple[Made, list[Dressed]]:
        question, answer = self.rng.choice(SMALL_TALK)
        return (question, [], answer), self._dressed(self._others(self.rng.choice([1, 1, 2]), exclude=set()))

    def _crowd(self) -> tuple[Made, list[Dressed]]:
        dressed, question, calls = self.questions.ask(self._function(), 1)
        return (say(question, self.rng), calls, ""), [dressed, *self._beside([dressed], self.rng.choice([5, 6, 7, 8]))]

    def _answer(self) -> tuple[Made, list[Dressed]]:
        return self._parallel_multiple() if self.rng.random() < 0.35 else self._ask_times(self.rng.choice([1, 1, 2, 3]))

    def _ask_times(self, times: int) -> tuple[Made, list[Dressed]]:
        dressed, question, calls = self.questions.ask(self._function(), times)
        return (question, calls, ""), [dressed]

    # -- siblings: what else is asked of the same tools ------------------------------------------------------------

    def _another(self, tools: list[Dressed]) -> Made:
        question, call = self.questions.sentence(self.rng.choice(tools))
        return say(question, self.rng), [call], ""

    def _several(self, tools: list[Dressed]) -> Made:
        if len(tools) == 1:
            question, calls = self.questions.again(tools[0], self.rng.choice([2, 2, 3]))
            return question, calls, ""
        chosen = self.rng.sample(tools, min(self.rng.choice([2, 2, len(tools)]), 4))
        asked = [self.questions.sentence(dressed) for dressed in chosen]
        return say_together([question for question, _ in asked], self.rng), [call for _, call in asked], ""

    def _unserved(self, tools: list[Dressed]) -> Made:
        """Ask for what none of the tools can do: knowledge, another function of the same domain, or of any."""
        text = refusal(len(tools), self.rng)
        style = self.rng.random()
        if style < 0.4:
            return self._plain_request(tools), [], text
        shown = [dressed.function for dressed in tools]
        near = [f for shown_one in shown for f in self.by_domain[shown_one.domain] if f not in shown]
        if style < 0.7 and near:
            asked = self.rng.choice(near)
        else:
            [asked] = self._others(1, exclude={f.domain for f in shown})
        return say(self.questions.ask(asked, 1)[1], self.rng), [], text

    def _plain_request(self, tools: list[Dressed]) -> str:
        """A request that no function of ours serves; now and then about the kind of thing that the tools are about."""
        requests = no_tool_requests()
        kinds = {a.pool.kind for dressed in tools for a in dressed.function.arguments if not a.optional}
        about = [r for r in requests if not r.startswith("! ") and kinds & set(re.findall(r"\{(\w+)\}", r))]
        unrelated = [r for r in requests if not (r.startswith("! ") and kinds & set(re.findall(r"\{(\w+)\}", r)))]
        request = self.rng.choice(about if about and self.rng.random() < 0.4 else unrelated).removeprefix("! ")
        filled = re.sub(r"\{(\w+)\}", lambda match: draw(parse_pool(match[1]), self.rng).surface, request)
        return filled if self.rng.random() < 0.8 else say(filled, self.rng)

    # -- choosing functions ----------------------------------------------------------------------------------------

    def _function(self) -> Function:
        # By domain first, or the many short lookups would crowd out the hand-written functions.
        return self.rng.choice(self.by_domain[self.rng.choice(self.domains)])

    def _others(self, number: int, exclude: set[str]) -> list[Function]:
        found: list[Function] = []
        while len(found) < number:
            candidate = self._function()
            if candidate.domain not in exclude and candidate not in found:
                found.append(candidate)
        return found

    def _beside(self, dressed: list[Dressed], number: int) -> list[Dressed]:
        """Choose `number` other tools to stand beside these, half of them from the same domains."""
        asked = [d.function for d in dressed]
        near = [f for d in asked for f in self.by_domain[d.domain] if f not in asked]
        near = list(dict.fromkeys(near))  # two tools of one domain would offer it twice
        mates = self.rng.sample(near, min(len(near), sum(self.rng.random() < 0.55 for _ in range(number))))
        return self._dressed(mates + self._others(number - len(mates), exclude={f.domain for f in asked}))

    def _dressed(self, functions: list[Function]) -> list[Dressed]:
        return [dress(function, self.rng) for function in functions]
