"""The second hour's questions: what a model that has learned the first ones still gets wrong.

The adapter of the first hour was asked 300 of the leaderboard's questions, and its mistakes were read. It makes two
calls where three or four are wanted, leaves out optional arguments in questions that ask several times, and writes a
name that it knows in place of the one in the question. So here

- several calls are more often three and four, over more functions, and more of all values of one with all of another;
- "the same, but with a radius of 5": what is not said again has to be taken from the sentence before;
- a story of several cases speaks of optional arguments too;
- one name in five is made up, and one question in six puts its values between quotes.

Everything else is generator.py's.
"""

from random import Random
from typing import Any

from step4_finetune.function_specs import CLAUSE, SLOT, Function, clause_keys
from step4_finetune.generator import Generator
from step4_finetune.questions import Call, Questions, a_word
from step4_finetune.schema_variants import Dressed, dress
from step4_finetune.value_pools import Value, draw, parse_pool

# Pools whose values can be told in one phrase of their own: "the same, but with a … of 5".
_RETOLD = frozenset({"int", "num", "money", "percent", "year", "date", "clock", "city", "citystate", "person", "title"})
# Pools of names that a question may bring without anybody having heard of them.
_NAMES = frozenset({
    "artist", "airline", "brand", "city", "company", "composer", "country", "event", "game", "hotel", "landmark",
    "mountain", "museum", "park", "person", "product", "restaurant", "river", "station", "team", "title", "university",
})  # fmt: skip
_BUT = (
    "And can you do the same but with {} instead?", "Then do the same for {}.", "Also do it with {}.",
    "Now do the same, but for {}.", "What about {}?", "And the same with {}, please.",
    "Everything else being equal, do it once more with {}.",
)  # fmt: skip


class SecondQuestions(Questions):
    """Questions (questions.py), asked as the module's docstring says."""

    COMBINED = 0.6
    MADE_UP = 0.2
    QUOTED = 0.16
    SAME_BUT = 0.25

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.quoted = False

    def begin(self) -> None:
        """Begin another example; decide whether its values stand between quotes."""
        super().begin()
        self.quoted = self.rng.random() < self.QUOTED

    def ask(self, function: Function, times: int, whole: bool = True) -> tuple[Dressed, str, list[Call]]:
        """As Questions.ask; of several calls, a quarter are asked for by what differs from the first."""
        if times > 1 and whole and self.rng.random() < self.SAME_BUT:
            template = self.rng.choice(function.templates)
            keys = sorted({key for clause in CLAUSE.finditer(template) for key in clause_keys(clause)})
            given = frozenset(key for key in keys if self.rng.random() < self.SAID)
            dressed = dress(function, self.rng, given=given, template=template)
            if made := self._same_but(dressed, times):
                return dressed, *made
        return super().ask(function, times, whole)

    def _same_but(self, dressed: Dressed, times: int) -> tuple[str, list[Call]] | None:
        """Ask once in full, then by one argument that changes. None where the first call has too few arguments."""
        question, (name, arguments) = self.sentence(dressed)
        keys = [
            key
            for key, parameter in dressed.names.items()
            if parameter in arguments and dressed.function.argument(key).pool.kind in _RETOLD
        ]
        if len(arguments) < 2 or not keys:
            return None
        key = self.rng.choice(keys)
        parameter = dressed.names[key]
        said, calls = [], [(name, arguments)]
        for _ in range(times - 1):
            value = self._draw(dressed, key)
            call = (name, arguments | {parameter: value.value})
            if call in calls:
                continue
            calls.append(call)
            said.append(f"{a_word(parameter)} of {value.surface}")
        if not said:
            return None
        end = "" if question.endswith((".", "?", "!")) else "."
        if len(said) > 1 and self.rng.random() < 0.5:
            return f"{question}{end} {self.rng.choice(_BUT).format(', then with '.join(said))}", calls
        return f"{question}{end} {' '.join(self.rng.choice(_BUT).format(one) for one in said)}", calls

    def _every_combination(self, dressed: Dressed, group: str, shared: dict[str, Any]) -> tuple[str, list[Call]] | None:
        """As Questions', but not of two numbers: "a rectangle of 14 and 13 by 8 and 6" is no question."""
        kinds = {dressed.function.argument(match[1]).pool.json_type for match in SLOT.finditer(group)}
        return super()._every_combination(dressed, group, shared) if "string" in kinds else None

    def _told_of(self, dressed: Dressed) -> list[str]:
        """Optional arguments too, but for yes and no, which no story tells with a value."""
        pools = {key: dressed.function.argument(key).pool.kind for key in dressed.names}
        return [
            key
            for key, kind in pools.items()
            if key in dressed.required or (kind != "bool" and self.rng.random() < self.SAID)
        ]

    def _draw(self, dressed: Dressed, key: str) -> Value:
        value = super()._draw(dressed, key)
        if not isinstance(value.value, str) or value.surface != value.value:
            return value  # a number, or a text that the call normalises
        text = value.value
        if dressed.function.argument(key).pool.kind in _NAMES and self.rng.random() < self.MADE_UP:
            text = _coined(self.rng)
        if text == value.value and not self.quoted:
            return value
        return Value(f"'{text}'" if self.quoted and "'" not in text else text, text)


class SecondGenerator(Generator):
    """Generator (generator.py) with the second hour's questions."""

    ASKER = SecondQuestions
    TIMES = (2, 2, 3, 3, 4, 4)
    FUNCTIONS = (2, 3, 3, 4)
    TWICE = 0.3


def _coined(rng: Random) -> str:
    """A name that nobody knows, so that it can only be copied: a made-up word, letters, or a longer one of both."""
    letters = "".join(rng.choice("ABCDEFGHIKLMNOPRSTVWZ") for _ in range(rng.choice([3, 3, 4])))
    word, noun, other, last = (draw(parse_pool(kind), rng).surface for kind in ("madeup", "noun", "noun", "last"))
    return rng.choice([word, letters, f"{word} {noun}", f"{other} of {word}", f"{word} & {last}"])
