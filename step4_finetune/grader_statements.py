"""Statements for the grounding question: sentences of a passage said a little differently, and the same made untrue.

The changes are plain text edits, so that each is known to be one: a number, a name, or a negation makes a statement
that the passage does not support; a dropped parenthesis or a moved opening leaves it supported. Both sides are edited,
so that "not word for word in the passage" says nothing.
"""

import re
from random import Random

from step4_finetune.bm25 import COMMON
from step4_finetune.decontaminate import words
from step4_finetune.grader_sources import sentences

SHORTEST, LONGEST = 6, 32  # words of a statement

NUMBER = re.compile(r"\b\d[\d,]*(?:\.\d+)?\b")
NAME = re.compile(r"\b[A-Z][a-z]+(?: (?:of |the |de )?[A-Z][a-z]+)*\b")
# Verbs after which "not" may stand. Not "has" or "did" alone: they have other uses.
VERB = re.compile(r"\b(is|are|was|were|can|could|will|would|must|should|has|have|had)( not)?\b(?= \w)")
PARTICIPLE = re.compile(r" (not )?(been|become|[a-z]+ed)\b")
OPENING = re.compile(r"((?:In|On|At|After|Before|During|By|Since|For) [^,.;:]{3,60}), (?=[A-Za-z])")
_CALENDAR = (
    "January February March April May June July August September October November December Monday Tuesday Wednesday "
    "Thursday Friday Saturday Sunday"
)
CALENDAR = frozenset(_CALENDAR.split())


def statements(text: str) -> list[str]:
    """The sentences of a passage that stand on their own."""
    body = text.split("\n")[-1]  # without a title
    found = [s for s in sentences(body) if SHORTEST <= len(s.split()) <= LONGEST and s[0].isupper() and s[-1] == "."]
    return [s for s in found if s.count('"') % 2 == 0 and s.count("(") == s.count(")")]


def supported(sentence: str, rng: Random) -> str:
    """The sentence with the same meaning, in half of all cases with other words or another order where it has any."""
    if rng.random() < 0.5:
        return sentence
    return _move_opening(re.sub(r" ?\([^()]*\)", "", sentence))


def _move_opening(sentence: str) -> str:
    """ "In 2005, X did Y." → "X did Y in 2005." """
    opening = OPENING.match(sentence)
    rest = sentence[opening.end() :] if opening else ""
    if opening is None or "," in rest or len(rest.split()) > 20:
        return sentence
    moved = opening[1][0].lower() + opening[1][1:]
    return f"{rest[0].upper()}{rest[1:-1]} {moved}."


def unsupported(sentence: str, passage: str, elsewhere: str, rng: Random) -> tuple[str, str] | None:
    """Make a statement that the passage does not make; return it and the kind of change, or None.

    elsewhere: another text, for names that the passage does not have. The kinds are tried in a random order.
    """
    # Both sides get the edits that keep the meaning, here before the change: a dropped parenthesis must not undo it.
    sentence = supported(sentence, rng)
    kinds = rng.sample(["number", "name", "name", "negation"], 4)
    for kind in kinds:
        if kind == "number":
            changed = _other_number(sentence, passage, rng)
        elif kind == "name":
            changed = _other_name(sentence, passage, elsewhere, rng)
        else:
            changed = _negated(sentence)
        if changed:
            return changed, kind
    return None


def _other_number(sentence: str, passage: str, rng: Random) -> str | None:
    found = list(NUMBER.finditer(sentence))
    if not found:
        return None
    match = rng.choice(found)
    old = match[0]
    here = {number for number in NUMBER.findall(passage) if len(number) == len(old) and number not in sentence}
    if here and rng.random() < 0.5:  # the harder kind: a number of this passage that belongs to something else
        new = rng.choice(sorted(here))
    else:
        place = rng.choice([i for i, c in enumerate(old) if c.isdigit()][-2:])
        digit = rng.choice([d for d in "123456789" if d != old[place]])
        new = old[:place] + digit + old[place + 1 :]
    return sentence[: match.start()] + new + sentence[match.end() :]


def _other_name(sentence: str, passage: str, elsewhere: str, rng: Random) -> str | None:
    found = _names(sentence)
    if not found:
        return None
    match = rng.choice(found)
    said = set(words(sentence))
    for text in rng.sample([passage, elsewhere], 2):
        names = {m[0] for s in sentences(text) for m in _names(s)}
        same_length = {name for name in names if len(name.split()) == len(match[0].split())}
        others = sorted(name for name in same_length if not said & set(words(name)))
        if others:
            return sentence[: match.start()] + rng.choice(others) + sentence[match.end() :]
    return None


def _names(sentence: str) -> list[re.Match[str]]:
    """Names in a sentence. Its first word has a capital anyway, so it is not known to be one."""
    found = [m for m in NAME.finditer(sentence) if m.start() > 0]
    return [m for m in found if not CALENDAR & set(m[0].split()) and m[0].lower() not in COMMON]


def _negated(sentence: str) -> str | None:
    for match in VERB.finditer(sentence):
        if match[1] in ("has", "have", "had") and not PARTICIPLE.match(sentence, match.end(1)):
            continue
        if match[2]:
            return sentence[: match.end(1)] + sentence[match.end() :]
        return f"{sentence[: match.end()]} not{sentence[match.end() :]}"
    return None
