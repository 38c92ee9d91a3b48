"""The functions the synthetic data is about, read from step4_finetune/domains/*.txt.

A specification is a function before it is dressed for one example: several names to choose from, arguments with the
pools their values come from, and question templates. In a template

    {city}            is the value of an argument; {speed=0:from rest} is the value 0, said as "from rest"
    [ in {unit}]      is said only when the optional argument is given
    [+flag  words]    is said when the boolean is true ([-flag …] when it is false)
    <…>               is what repeats when the function is called several times: "the weather in <{city}>"

Three kinds of file: hand-written functions; formulas.txt and lookups.txt, where one line makes a whole function because
only names and inputs differ. Those of domains/later are the third hour's: by then the others are known by heart.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from step4_finetune.value_pools import Pool, parse_pool

FOLDER = Path(__file__).parent / "domains"
HAND_WRITTEN = ("money_work", "science", "life", "culture", "tech")

# Domains whose tools are never trained on: the unseen-tool split asks whether reading schemas was learned.
HELD_OUT = frozenset({
    "banking", "patents", "optics", "photography", "gardening", "pets", "navigation_maps", "public_transport",
    "language_learning", "robotics_iot", "mythology_religion", "minerals", "clubs", "gadgets",
})  # fmt: skip

SLOT = re.compile(r"\{(\w+)(?:=([^:}]*):([^}]*))?\}")
CLAUSE = re.compile(r"\[([+-]\w+ )?([^\]]*)\]")


@dataclass(frozen=True)
class Argument:
    """One argument. names: the first is the one templates use, any of them may end up in the schema."""

    names: tuple[str, ...]
    pool: Pool
    description: str
    optional: bool = False
    default: str | None = None

    @property
    def key(self) -> str:
        """The name templates use."""
        return self.names[0]


@dataclass(frozen=True)
class Function:
    """A function specification; see the module's docstring for templates."""

    domain: str
    names: tuple[str, ...]
    does: str
    arguments: tuple[Argument, ...]
    templates: tuple[str, ...]

    def argument(self, key: str) -> Argument:
        """Find an argument by its template name."""
        return next(a for a in self.arguments if a.key == key)


def slots(template: str) -> set[str]:
    """Arguments that a template speaks of outside its optional clauses."""
    return {match[1] for match in SLOT.finditer(CLAUSE.sub("", template))}


def clause_keys(clause: re.Match[str]) -> set[str]:
    """Arguments of one optional clause; a boolean clause has exactly one."""
    return {clause[1][1:].strip()} if clause[1] else {match[1] for match in SLOT.finditer(clause[2])}


@cache
def functions(held_out: bool) -> tuple[Function, ...]:
    """Return the specifications of the training domains, or of the held-out ones. Raises ValueError for a bad line."""
    everything = [f for name in HAND_WRITTEN for f in read_functions((FOLDER / f"{name}.txt").read_text("utf-8"))]
    everything += [_formula(line) for line in _lines("formulas")]
    everything += [function for line in _lines("lookups") for function in _lookups(line)]
    return tuple(function for function in everything if (function.domain in HELD_OUT) == held_out)


@cache
def later_functions() -> tuple[Function, ...]:
    """Return the specifications that only the third hour has. Raises ValueError for a bad line."""
    texts = [path.read_text("utf-8") for path in sorted((FOLDER / "later").glob("*.txt"))]
    return tuple(function for text in texts for function in read_functions(text))


@cache
def no_tool_requests() -> tuple[str, ...]:
    """Requests no tool serves; {pool} is to be filled."""
    return tuple(_lines("no_tool"))


def _lines(name: str) -> list[str]:
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def read_functions(text: str) -> list[Function]:
    """Parse hand-written functions: "# domain", "name/name : what it does", indented arguments, "> template" lines."""
    found: list[Function] = []
    domain, head = "", ("", "")
    arguments: list[Argument] = []
    templates: list[str] = []

    def finish() -> None:
        if head[0]:
            found.append(
                _checked(Function(domain, tuple(head[0].split("/")), head[1], tuple(arguments), tuple(templates)))
            )
            arguments.clear()
            templates.clear()

    for line in [*text.splitlines(), "# end"]:
        if line.startswith("#"):
            finish()
            domain, head = line[1:].strip(), ("", "")
        elif line.startswith("  > "):
            templates.append(line[4:])
        elif line.startswith("  "):
            arguments.append(_argument(line))
        elif line:
            finish()
            name, _, does = line.partition(" : ")
            head = (name.strip(), does.strip())
    return found


def _argument(line: str) -> Argument:
    match = re.fullmatch(r"  ([\w/]+)(\??) (.+?)(?: = (.+?))? : (.+)", line)
    if not match:
        raise ValueError(f"cannot read the argument line {line!r}")
    names, optional, pool, default, description = match.groups()
    return Argument(tuple(names.split("/")), parse_pool(pool), description, bool(optional), default)


def _checked(function: Function) -> Function:
    required = {a.key for a in function.arguments if not a.optional}
    known = {a.key for a in function.arguments}
    for template in function.templates:
        said = slots(template).union(*(clause_keys(clause) for clause in CLAUSE.finditer(template)))
        if said - known or required - slots(template) or not function.templates:
            raise ValueError(f"{function.names[0]}: {template!r} has unknown or missing arguments {said ^ required}")
    return function


# A short phrase with every input, in the ways a person lists them.
_FORMULA_TEMPLATES = (
    "What is {what} <with {a_list}>?",
    "Calculate {what} <for {a_list}>.",
    "{What} <if {is_list}>?",
    "<{Is_list}>. Find {what}.",
    "Determine {what} <given that {is_list}>[, rounded to {precision} decimals].",
    "I need {what}: <{list}>[, {precision} decimals].",
)


def _formula(line: str) -> Function:
    """Make a function of "domain; name; the what of a thing; input unit lo..hi; …"."""
    domain, name, what, *inputs = (part.strip() for part in line.split(";"))
    arguments, named = [], []
    for text in inputs:
        key, unit, span = text.split()
        words = key.replace("_", " ")
        low, high = (float(bound) for bound in span.split(".."))
        kind = "num" if "." in span.replace("..", "") or high - low < 400 else "int"
        if unit in ("-", "people", "games", "pixels", "days", "years", "bits") and low == int(low):
            kind = "int"
        spoken = "" if unit in ("-", words) else f" {unit.replace('_', ' ')}"
        inside = f" in {unit.replace('_', ' ')}" if unit != "-" else ""
        arguments.append(Argument((key,), parse_pool(f"{kind} {span}"), f"{words.capitalize()}{inside}"))
        named.append((words, f"{{{key}}}{spoken}"))
    is_list = _and([f"the {words} is {value}" for words, value in named])
    a_list = _and([f"{'an' if words[0] in 'aeiou' else 'a'} {words} of {value}" for words, value in named])
    parts = {
        "what": what, "What": f"What would be {what}", "a_list": a_list, "is_list": is_list,
        "Is_list": is_list.capitalize(), "list": _and([f"{words} {value}" for words, value in named]),
        "precision": "{precision}",
    }  # fmt: skip
    how_long = what.startswith("how ")  # "how long a battery lasts" is not "what is" of anything
    chosen = [t for t in _FORMULA_TEMPLATES if not how_long or not t.startswith(("What", "{What}", "I need"))]
    precision = Argument(("precision", "decimals"), parse_pool("int 1..6"), "Decimals of the result", True, "2")
    templates = tuple(re.sub(r"\{(\w+)\}", lambda m: parts[m[1]], template) for template in chosen)
    does = f"Calculate {what}"
    return _checked(Function(domain, (f"calculate_{name}", name), does, (*arguments, precision), templates))


def _lookups(line: str) -> list[Function]:
    """Make one function per fact of "domain; thing; pool; fact, fact"."""
    domain, thing, pool, facts = (part.strip() for part in line.split(";"))
    made = []
    article = "an" if thing[0] in "aeio" else "a"
    key = thing.replace(" ", "_")
    for fact in facts.split(", "):
        snake = re.sub(r"\W+", "_", fact)
        arguments = (
            Argument((key, "name", f"{key}_name"), parse_pool(pool), f"Name of the {thing}"),
            Argument(("detailed", "verbose", "details"), parse_pool("bool"), "Give more detail", True, "false"),
            Argument(("language", "lang"), parse_pool("language"), "Language of the answer", True, "English"),
        )
        templates = (
            f"What is the {fact} of <{{{key}}}>?",
            f"Tell me the {fact} of the {thing} <{{{key}}}>[ in {{language}}][+detailed , in detail].",
            f"Find the {fact} for <{{{key}}}>[+detailed  with details].",
            f"I'd like to know the {fact} of <{{{key}}}>[, answer in {{language}}].",
            f"{thing.capitalize()} <{{{key}}}>: {fact}?",
        )
        names = (f"get_{key}_{snake}", f"{snake}_of_{key}", f"{key}_{snake}")
        made.append(_checked(Function(domain, names, f"Get the {fact} of {article} {thing}", arguments, templates)))
    return made


def _and(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
