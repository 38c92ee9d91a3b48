"""Ask for a dressed function: a question with values in it, and the calls that answer it.

Templates are explained in step4_finetune/function_specs.py. Three ways to ask: fill a template; repeat its <…> part for
several calls at once; spell out parameter names and values ("… with radius 3 and height 4").
"""

import re
from random import Random
from typing import Any

from step4_finetune.function_specs import CLAUSE, SLOT, Function, clause_keys, slots
from step4_finetune.paraphrases import is_order, lower_first, say_together
from step4_finetune.schema_variants import Dressed, dress
from step4_finetune.value_pools import Value, draw, words_of

Call = tuple[str, dict[str, Any]]


class Questions:
    """Asks questions, all from one random stream. normalised: see examples.Example."""

    SAID = 0.6  # of the optional arguments that a template can speak of
    COMBINED = 0.4  # of several calls whose template has two slots: every value of one with every value of the other

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.normalised: dict[str, list[Any]] = {}

    def begin(self) -> None:
        """Begin another example: what was normalised belongs to the one before."""
        self.normalised = {}

    def ask(self, function: Function, times: int, whole: bool = True) -> tuple[Dressed, str, list[Call]]:
        """Dress a function and ask for it: the question and the calls that answer it.

        times: how many calls. whole: several calls may be asked for in several sentences.
        """
        template = self.rng.choice([t for t in function.templates if whole or times == 1 or "<" in t])
        keys = [key for clause in CLAUSE.finditer(template) for key in sorted(clause_keys(clause))]
        said = {key for key in keys if self.rng.random() < self.SAID}
        said |= {key for key in slots(template) if function.argument(key).optional}
        dressed = dress(function, self.rng, given=frozenset(said), template=template)
        plain = all(a.pool.kind != "bool" for a in function.arguments if a.key in dressed.required)
        if times == 1 and plain and self.rng.random() < 0.13:
            given = [
                k
                for k in dressed.names
                if k in dressed.required or (k in said and function.argument(k).pool.kind != "bool")
            ]
            question, call = self.spelled_out(dressed, given)
            return dressed, question, [call]
        if times > 1 and whole and plain and len(dressed.required) > 1 and self.rng.random() < 0.2:
            return dressed, *self._one_by_one(dressed, times)
        if times > 1 and whole and ("<" not in template or self.rng.random() < 0.25):
            return dressed, *self.again(dressed, times)
        return dressed, *self._fill(dressed, *self._resolve(dressed, template, said), times)

    def _one_by_one(self, dressed: Dressed, times: int) -> tuple[str, list[Call]]:
        """Ask for several cases in one story: "… for three cases. The first has a radius of 3 and …, the second …"."""
        ordinals = ("first", "second", "third", "fourth")[:times]
        has = self.rng.choice(["has", "has", "comes with"])
        told_of = self._told_of(dressed)
        told, calls = [], []
        for ordinal in ordinals:
            arguments: dict[str, Any] = {}
            parts = []
            for key in told_of:
                value = self._draw(dressed, key)
                arguments[key] = value.value
                parts.append(f"{a_word(dressed.names[key])} of {value.surface}")
            told.append(f"the {ordinal} {has} {', '.join(parts[:-1])} and {parts[-1]}")
            calls.append(self._call(dressed, arguments))
        does = dressed.function.does.removesuffix(".")
        number = ("", "", "two", "three", "four")[times]
        opening = self.rng.choice([f"{does} for {number} cases", f"I have {number} cases. {does} for each", f"{does}"])
        if self.rng.random() < 0.5:
            body = ". ".join(sentence[0].upper() + sentence[1:] for sentence in told)
            return _tidy(f"{opening}. {body}."), calls
        return _tidy(f"{opening}: {', '.join(told[:-1])}, and {told[-1]}."), calls

    def _told_of(self, dressed: Dressed) -> list[str]:
        """The arguments that a story of several cases speaks of."""
        return [key for key in dressed.names if key in dressed.required]

    def again(self, dressed: Dressed, times: int) -> tuple[str, list[Call]]:
        """Ask for the same function in several whole sentences, each with its own template and optional arguments."""
        asked = [self.sentence(dressed) for _ in range(times)]
        return say_together([question for question, _ in asked], self.rng), [call for _, call in asked]

    def sentence(self, dressed: Dressed) -> tuple[str, Call]:
        """Ask once for a function that is dressed already, with any template that its parameters allow."""
        template = self.rng.choice([t for t in dressed.function.templates if slots(t) <= dressed.names.keys()])
        optional = {key for match in CLAUSE.finditer(template) for key in clause_keys(match)} & dressed.names.keys()
        said = {key for key in sorted(optional) if key in dressed.required or self.rng.random() < 0.5}
        if not dressed.required <= said | slots(template):  # an optional argument that its schema requires
            template, said = dressed.template, set(dressed.required)
        question, calls = self._fill(dressed, *self._resolve(dressed, template, said), 1)
        return question, calls[0]

    def _resolve(self, dressed: Dressed, template: str, said: set[str]) -> tuple[str, dict[str, bool]]:
        """Keep the optional clauses that are said, drop the others; the booleans that follow from either."""
        flags: dict[str, bool] = {}

        def clause(match: re.Match[str]) -> str:
            keys = clause_keys(match)
            if match[1]:
                key = next(iter(keys))
                if key in said:
                    flags[key] = match[1][0] == "+"
                elif key in dressed.required:
                    flags[key] = match[1][0] != "+"
            return match[2] if keys <= said else ""

        return CLAUSE.sub(clause, template), flags

    def _fill(self, dressed: Dressed, text: str, flags: dict[str, bool], times: int) -> tuple[str, list[Call]]:
        """Put values into a template whose clauses are resolved, repeating its <…> part for several calls."""
        before, group, after = re.fullmatch(r"([^<]*)(?:<(.*)>)?([^<]*)", text, re.DOTALL).groups("")  # type: ignore[union-attr]
        shared: dict[str, Any] = dict(flags)
        head, tail = self._values(dressed, before, shared), self._values(dressed, after, shared)
        if (
            times > 2
            and self.rng.random() < self.COMBINED
            and (made := self._every_combination(dressed, group, shared))
        ):
            return _tidy(head + made[0] + tail), made[1]
        copies: list[str] = []
        surfaces: list[dict[str, str]] = []
        calls: list[Call] = []
        for _ in range(times):
            for _attempt in range(5):  # small pools repeat themselves; calling twice with the same values is no lesson
                arguments, said = dict(shared), dict[str, str]()
                copy = self._values(dressed, group, arguments, said)
                call = self._call(dressed, arguments)
                if call not in calls:
                    break
            copies.append(copy)
            surfaces.append(said)
            calls.append(call)
        if times > 1 and len(SLOT.findall(group)) > 1 and "=" not in group and self.rng.random() < 0.2:
            body = self._respectively(group, surfaces)
        else:
            body = self._enumerate(copies)
        question = _tidy(head + body + tail)
        return question, calls

    def _every_combination(self, dressed: Dressed, group: str, shared: dict[str, Any]) -> tuple[str, list[Call]] | None:
        """Two values in each of two slots, "the weather in Rome and Oslo on Monday and Friday": four calls.

        None where the group has other than two slots, or a value without a surface of its own. What is meant to be
        paired instead says "respectively".
        """
        slots = [match for match in SLOT.finditer(group) if match[2] is None]
        keys = [match[1] for match in slots]
        if len(keys) != 2 or len(SLOT.findall(group)) != 2 or keys[0] == keys[1]:
            return None
        if any(dressed.function.argument(key).pool.kind in ("money", "list", "obj", "matrix") for key in keys):
            return None
        drawn = {key: [self._draw(dressed, key) for _ in range(2)] for key in keys}
        if any(first.value == second.value for first, second in drawn.values()):
            return None
        body = SLOT.sub(lambda match: " and ".join(value.surface for value in drawn[match[1]]), group)
        calls = [
            self._call(dressed, {**shared, keys[0]: first.value, keys[1]: second.value})
            for first in drawn[keys[0]]
            for second in drawn[keys[1]]
        ]
        return body, calls

    def _enumerate(self, copies: list[str]) -> str:
        if len(copies) < 2:
            return copies[0]
        mark = "; " if any(", " in c for c in copies) and self.rng.random() < 0.4 else ", "
        last = self.rng.choice([" and ", " and ", f"{mark}and ", " and also "])
        return mark.join(copies[:-1]) + last + copies[-1]

    def _respectively(self, group: str, surfaces: list[dict[str, str]]) -> str:
        """Say the copies slot by slot: "from Rome and Oslo to Bonn and Cork respectively"."""
        columns = {key: [said[key] for said in surfaces] for key in surfaces[0]}
        return (
            SLOT.sub(lambda match: ", ".join(columns[match[1]][:-1]) + f" and {columns[match[1]][-1]}", group)
            + " respectively"
        )

    def _values(
        self, dressed: Dressed, text: str, arguments: dict[str, Any], surfaces: dict[str, str] | None = None
    ) -> str:
        """Replace the slots of a text, noting each value, and its words, under its template name."""

        def slot(match: re.Match[str]) -> str:
            key = match[1]
            argument = dressed.function.argument(key)
            if match[2] is not None:
                arguments[key] = int(match[2])
                self.normalised.setdefault(match[3], []).append(arguments[key])
                return match[3]
            value = self._draw(dressed, key)
            arguments[key] = value.value
            following = text[match.end() :]
            # "$500 dollars" and "5% percent" come from units that the template already says.
            surface = value.surface
            if argument.pool.kind == "money" and re.match(r" (dollars|euros)", following):
                surface = surface.strip("$").removesuffix(" dollars")
            if surfaces is not None:
                surfaces[key] = surface
            return surface

        return SLOT.sub(slot, text)

    def _draw(self, dressed: Dressed, key: str) -> Value:
        value = draw(dressed.function.argument(key).pool, self.rng, dressed.forms.get(key, ""), key in dressed.whole)
        for item in value.value if isinstance(value.value, list) else [value.value]:
            if not isinstance(item, (list, dict)):
                self.normalised.setdefault(value.surface, []).append(item)
        return value

    def _call(self, dressed: Dressed, arguments: dict[str, Any]) -> Call:
        # In the schema's order: constrained decoding writes properties in that order.
        return dressed.name, {name: arguments[key] for key, name in dressed.names.items() if key in arguments}

    def spelled_out(self, dressed: Dressed, keys: list[str]) -> tuple[str, Call]:
        """Ask by naming parameters and values: "Calculate the area of a rectangle with length 3 and width 4"."""
        rng = self.rng
        arguments = {}
        pairs = []
        for key in rng.sample(keys, len(keys)):
            value = self._draw(dressed, key)
            arguments[key] = value.value
            pairs.append((words_of(dressed.names[key]), value.surface))
        does = dressed.function.does.removesuffix(".")
        style = rng.choice([" {0} {1}", "the {0} is {1}", "{0} = {1}", "{0}: {1}", "{0} of {1}", "{1} as the {0}"])
        listed = [style.format(*pair).strip() for pair in pairs]
        joined = ", ".join(listed[:-1]) + (" and " if len(listed) > 1 else "") + listed[-1]
        if style.startswith("the"):
            question = f"{does}, where {joined}." if rng.random() < 0.5 else f"{joined[0].upper()}{joined[1:]}. {does}."
        else:
            link = ": " if ":" in style or rng.random() < 0.15 else " with "
            question = f"{does}{link}{joined}."
        if rng.random() < 0.3 and is_order(question):
            question = f"Can you {lower_first(question)[:-1]}?"
        elif rng.random() < 0.06:
            question = f"Use {dressed.name} with {joined}."
        return question, self._call(dressed, arguments)


def a_word(name: str) -> str:
    """A parameter's name in words, after an article: "an interest rate"."""
    words = words_of(name)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _tidy(text: str) -> str:
    """Mend what putting parts together leaves: double blanks, a blank before a mark, a small first letter."""
    text = re.sub(r" {2,}", " ", text).strip()
    text = re.sub(r" ([,.?])(?=\s|$)", r"\1", text)
    text = re.sub(r"^[,;:.]\s*", "", text)
    text = re.sub(r"([.?!])\1", r"\1", text)
    # A title or an address may start small; a word of the template does not.
    return text[0].upper() + text[1:] if re.match(r"[a-z]+ ", text) else text
