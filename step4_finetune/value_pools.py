"""Random values for the synthetic questions: how a value reads in the question, and what it is in the call.

Copying values is the skill a small model lacks most, so the pools are large and partly made up: "Jorvela 4821" can
only come from the question. Some values are not copied but normalised ("5%" is 0.05, "March 3, 2024" is 2024-03-03);
which form is wanted is said in the parameter's description (FORMS), because that is where a model must look.

A pool is written the way the domain files write it: `int 1..50`, `num 0.5..9`, `money 100..9000`, `percent 1..20`,
`enum (a|b~words for b)`, `pick (x|y)`, `list POOL`, `obj field:POOL;field:POOL`, `bool`, or a word such as `city`.
"""

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

WORDS = Path(__file__).parent / "domains" / "words.txt"
NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
MONTHS = [datetime.date(2000, month, 1).strftime("%B") for month in range(1, 13)]

# Form -> ways to say it in a description. The empty text: nothing is said, the form is the usual one.
FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "percent": {"decimal": ("", " as a decimal", ", e.g. 0.05 for 5%"), "percent": (" in percent", ", 0 to 100")},
    "date": {"iso": (" (YYYY-MM-DD)", " in YYYY-MM-DD format"), "as said": ("",), "us": (" in MM/DD/YYYY format",)},
    "clock": {"24h": (" (HH:MM)", " in 24-hour HH:MM format"), "as said": ("",)},
    "citystate": {"state": (", in the format 'City, ST'", ", e.g. 'Denver, CO'"), "as said": ("",)},
    "currency": {"code": ("", " as a three-letter code", ", e.g. 'USD'")},
    "expr": {"python": ("", ", e.g. '3*x**2'")},
}


@dataclass(frozen=True)
class Value:
    """surface: its words in the question. value: what the call holds; they may differ only where a form says so."""

    surface: str
    value: Any


@dataclass(frozen=True)
class Pool:
    """A parsed pool: kind is a keyword or the name of a word list; the rest as its kind needs it."""

    kind: str
    low: float = 0
    high: float = 0
    decimals: int = 1
    options: tuple[tuple[str, str], ...] = ()  # (value, words in the question)
    item: "Pool | None" = None
    fields: tuple[tuple[str, "Pool"], ...] = ()

    @property
    def json_type(self) -> str:
        """The JSON Schema type of a value."""
        if self.kind in ("list", "list2", "matrix"):
            return "array"
        names = {"int": "integer", "num": "number", "money": "number", "percent": "number", "bool": "boolean"}
        return names.get(self.kind, "integer" if self.kind == "year" else "object" if self.kind == "obj" else "string")


def parse_pool(text: str) -> Pool:
    """Read a pool as the module's docstring describes it. Raises ValueError for one that is not known."""
    kind, _, rest = text.strip().partition(" ")
    if kind in ("int", "num", "money", "percent"):
        match = re.fullmatch(r"(-?[\d.]+?)\.\.(-?[\d.]+?)(?::(\d))?", rest)
        if not match:
            raise ValueError(f"{text!r} needs a range such as 1..9")
        return Pool(kind, float(match[1]), float(match[2]), int(match[3] or 1))
    if kind in ("enum", "pick"):
        pairs = [option.partition("~") for option in rest.strip("() ").split("|")]
        return Pool(kind, options=tuple((value, words or value) for value, _, words in pairs))
    if kind == "list":
        return Pool(kind, item=parse_pool(rest))
    if kind == "list2":
        return Pool(kind, item=parse_pool(rest))
    if kind == "obj":
        return Pool(kind, fields=tuple((n, parse_pool(p)) for n, _, p in (f.partition(":") for f in rest.split(";"))))
    if kind not in _MADE and kind not in _words() and kind not in ("bool", "year", "matrix"):
        raise ValueError(f"unknown pool {text!r}")
    return Pool(kind)


def draw(pool: Pool, rng: Random, form: str = "", whole: bool = False) -> Value:
    """Draw one value. form: a key of FORMS[pool.kind]. whole: numbers without a fraction (the schema says integer)."""
    if pool.kind in ("int", "num", "money", "year"):
        return _number(pool, rng, whole)
    if pool.kind == "percent":
        percent = rng.randint(int(pool.low * 2), int(pool.high * 2)) / 2
        number = int(percent) if percent == int(percent) else percent
        surface = f"{number}%" if rng.random() < 0.85 else f"{number} percent"
        return Value(surface, round(percent / 100, 5) if form == "decimal" else number)
    if pool.kind in ("enum", "pick"):
        value, words = rng.choice(pool.options)
        return Value(words, value)
    if pool.kind == "list" and pool.item:
        return _list(pool.item, rng, whole)
    if pool.kind == "list2" and pool.item:
        pair = [int(_number(pool.item, rng, True).value) for _ in range(2)]
        return Value(f"({pair[0]}, {pair[1]})" if rng.random() < 0.7 else str(pair), pair)
    if pool.kind == "matrix":
        size = rng.choice([2, 2, 3])
        rows = [[rng.randint(-9, 20) for _ in range(size)] for _ in range(size)]
        return Value(json.dumps(rows), rows)
    if pool.kind == "obj":
        return _object(pool, rng)
    if pool.kind in _FORMED:
        return _FORMED[pool.kind](rng, form)
    text = _MADE[pool.kind](rng) if pool.kind in _MADE else rng.choice(_words()[pool.kind])
    return Value(text, text)


def _number(pool: Pool, rng: Random, whole: bool) -> Value:
    if pool.kind == "year":
        year = rng.randint(1950, 2024)
        return Value(str(year), year)
    if pool.kind == "money":
        # Real amounts are round ones; a few odd ones keep the model copying.
        exponent = rng.choice([0, 1, 2, 3])
        amount = max(int(pool.low), round(rng.uniform(pool.low, pool.high) / 10**exponent) * 10**exponent)
        if amount >= 10**6 and amount % 10**5 == 0 and rng.random() < 0.5:
            return Value(f"${amount / 10**6:g} million", amount)
        return Value(rng.choice([f"${amount:,}", f"${amount}", f"{amount} dollars", f"{amount:,} dollars"]), amount)
    if pool.kind == "int" or whole or (pool.decimals == 1 and pool.high > 5 and rng.random() < 0.45):
        number = rng.randint(round(pool.low) or (1 if pool.low > 0 else 0), round(pool.high))
        if number > 100 and rng.random() < 0.3:
            number -= number % 10
        if 1 < number <= 10 and rng.random() < 0.1:
            return Value(NUMBER_WORDS[number], number)
        return Value(f"{number:,}" if number >= 1000 and rng.random() < 0.25 else str(number), number)
    decimals = pool.decimals if pool.decimals > 1 else rng.choice([1, 1, 2])
    decimal = round(rng.uniform(pool.low, pool.high), decimals) or pool.low
    if decimal == int(decimal):
        return Value(str(int(decimal)), int(decimal))  # "2" in the question is 2 in the call, not 2.0
    return Value(f"{decimal:.4f}".rstrip("0"), decimal)


def _list(item: Pool, rng: Random, whole: bool) -> Value:
    numeric = item.json_type in ("integer", "number")
    length = rng.randint(3, 7) if numeric else rng.randint(2, min(4, len(item.options) or 4))
    drawn: list[Value] = []
    while len(drawn) < length:
        # One bad style inside a list ("three, 1,200 and 7") would make the list unreadable.
        value = draw(item, rng, whole=whole)
        if numeric:
            value = Value(str(value.value), value.value)
        if numeric or value.value not in [other.value for other in drawn]:
            drawn.append(value)
    return Value(_join([value.surface for value in drawn], rng, numeric), [value.value for value in drawn])


def _join(words: list[str], rng: Random, numeric: bool) -> str:
    style = rng.random()
    if numeric and style < 0.55:
        return f"[{', '.join(words)}]"
    if not numeric and style < 0.15:
        words = [f"'{word}'" for word in words]
    return ", ".join(words) if style > 0.9 else ", ".join(words[:-1]) + " and " + words[-1]


def _object(pool: Pool, rng: Random) -> Value:
    drawn = {}
    for name, field_pool in pool.fields:
        value = draw(field_pool, rng)
        drawn[name] = Value(str(value.value), value.value)  # plain digits: "1,200" is unclear after a colon
    join, between = rng.choice([(" ", " and "), (": ", ", "), (" = ", " and "), (" = ", ", ")])
    return Value(
        between.join(f"{name}{join}{value.surface}" for name, value in drawn.items()),
        {name: value.value for name, value in drawn.items()},
    )


@cache
def _words() -> dict[str, list[str]]:
    lines = [line for line in WORDS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    lists = {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}
    return {
        n: [w.strip() + "." for w in r.rstrip(".").split(".,")] if n == "sentence" else r.split(", ")
        for n, r in lists.items()
    }


def _pick(rng: Random, name: str) -> str:
    return rng.choice(_words()[name])


def _madeup(rng: Random) -> str:
    """A pronounceable word that is in no dictionary."""
    onsets, vowels, ends = (
        "b br c d dr f g gr h j k l m n p qu r s st t tr v w z",
        "a e i o u ai ea io",
        "n r l s x th m",
    )
    syllables = [rng.choice(onsets.split()) + rng.choice(vowels.split()) for _ in range(rng.choice([2, 2, 3]))]
    return ("".join(syllables) + rng.choice(["", *ends.split()])).capitalize()


def _person(rng: Random) -> str:
    last = _madeup(rng) if rng.random() < 0.2 else _pick(rng, "last")
    return f"{_pick(rng, 'first')} {last}"


def _date(rng: Random, form: str) -> Value:
    day = datetime.date(2019, 1, 1) + datetime.timedelta(days=rng.randrange(2900))
    iso, us = day.isoformat(), day.strftime("%m/%d/%Y")
    month = day.strftime("%B")
    suffix = "th" if 10 <= day.day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    said = [f"{month} {day.day}, {day.year}", f"{day.day} {month} {day.year}", f"{month} {day.day}{suffix}, {day.year}"]
    surface = rng.choice([*said, iso, iso] if form == "iso" else [*said, us, iso])
    return Value(surface, {"iso": iso, "us": us}.get(form, surface))


def _clock(rng: Random, form: str) -> Value:
    hour, minute = rng.randrange(24), rng.choice([0, 0, 0, 15, 30, 30, 45, rng.randrange(60)])
    h24 = f"{hour:02d}:{minute:02d}"
    half, hour12 = ("AM" if hour < 12 else "PM"), hour % 12 or 12
    said = [f"{hour12}:{minute:02d} {half}"] + ([f"{hour12} {half}"] if minute == 0 else [])
    surface = rng.choice([*said, h24])
    return Value(surface, h24 if form == "24h" else surface)


def _city_state(rng: Random, form: str) -> Value:
    if form != "state" and rng.random() < 0.6:
        city = _pick(rng, "city")
        return Value(city, city)
    city, short, state = _pick(rng, "us").split("/")
    surface = rng.choice([f"{city}, {short}", f"{city}, {state}", city])
    return Value(surface, f"{city}, {short}" if form == "state" else surface)


def _currency(rng: Random, form: str) -> Value:
    name, code = _pick(rng, "currency").split("/")
    return Value(rng.choice([name, name, code]), code)


def _expr(rng: Random, form: str) -> Value:
    degrees = sorted(rng.sample([0, 1, 2, 3, 4], rng.choice([2, 3])), reverse=True)
    shown, python = "", ""
    for degree in degrees:
        c, sign = rng.randint(1, 12), rng.choice("+-") if shown else ""
        times = "" if c == 1 and degree else str(c)
        power = {0: "", 1: "x"}.get(degree, f"x^{degree}")
        shown += (f" {sign} " if sign else "") + times + power
        star = "*" if times and degree else ""
        python += (f" {sign} " if sign else "") + times + star + power.replace("^", "**")
    return Value(rng.choice([shown, shown, python]), python)


_FORMED: dict[str, Callable[[Random, str], Value]] = {
    "date": _date, "clock": _clock, "citystate": _city_state, "currency": _currency, "expr": _expr,
}  # fmt: skip


def _company(rng: Random) -> str:
    name = _madeup(rng) if rng.random() < 0.25 else _pick(rng, "company")
    return name if rng.random() < 0.4 else f"{name} {_pick(rng, 'company_end')}"


def _title(rng: Random) -> str:
    a, n, m = _pick(rng, "adjective"), _pick(rng, "noun"), _pick(rng, "noun")
    return rng.choice(
        [f"The {a} {n}", f"{a} {n}", f"{n} of the {m}", f"The {n} and the {m}", f"{a} {n.removesuffix('s')}s"]
    )


def _email(rng: Random) -> str:
    name = f"{_pick(rng, 'first')}.{_pick(rng, 'last')}".lower()
    return f"{name}@{_pick(rng, 'company').lower()}.{rng.choice(['com', 'org', 'net', 'io', 'example'])}"


def _path(rng: Random) -> str:
    folders = ["home", "data", "projects", "reports", "archive", "photos", "src", "backup"]
    stem = rng.choice([_madeup(rng).lower(), _pick(rng, "table"), f"{_pick(rng, 'noun').lower()}_{rng.randint(1, 99)}"])
    return (
        f"/{'/'.join(rng.sample(folders, rng.choice([1, 2])))}/{stem}{rng.choice(['', '.txt', '.csv', '.png', '.py'])}"
    )


def _id(rng: Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTUVWXYZ") for _ in range(rng.choice([1, 2, 3])))
    return rng.choice([f"{letters}-{rng.randint(100, 99999)}", f"{letters}{rng.randint(100, 999999)}"])


def _host(rng: Random) -> str:
    sub = rng.choice(["", "www.", "api.", "mail.", "shop."])
    return f"{sub}{_madeup(rng).lower()}.{rng.choice(['com', 'org', 'net', 'io'])}"


_MADE: dict[str, Callable[[Random], str]] = {
    **{name: (lambda rng: "") for name in _FORMED},
    "madeup": _madeup,
    "madeup2": lambda rng: f"{_madeup(rng)} {rng.choice([_madeup(rng), _pick(rng, 'noun')])}",
    "person": _person,
    "company": _company,
    "title": _title,
    "email": _email,
    "path": _path,
    "id": _id,
    "host": _host,
    "url": lambda rng: f"https://{_host(rng)}/{_pick(rng, 'table')}/{rng.randint(1, 999)}",
    "ip": lambda rng: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
    "code": lambda rng: f"{_pick(rng, 'noun').upper()}{rng.randint(5, 99)}",
    "hexid": lambda rng: "0x" + "".join(rng.choice("0123456789abcdef") for _ in range(10)),
    "phone": lambda rng: f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(1000, 9999)}",
    "street": lambda rng: (
        f"{rng.randint(1, 990)} {_pick(rng, 'noun')} {rng.choice(['Street', 'Road', 'Avenue', 'Lane'])}"
    ),
    "username": lambda rng: f"{_pick(rng, 'adjective').lower()}{_pick(rng, 'noun')}{rng.randint(1, 999)}",
    "branch": lambda rng: f"{rng.choice(['feature', 'fix', 'release'])}/{_madeup(rng).lower()}-{rng.randint(1, 99)}",
    "service": lambda rng: f"{_madeup(rng).lower()}-{rng.choice(['api', 'worker', 'web', 'cache'])}",
    "flight": lambda rng: f"{rng.choice(['LH', 'BA', 'AF', 'KL', 'UA', 'QF', 'EK', 'AZ'])}{rng.randint(10, 9999)}",
    "station": lambda rng: f"{_pick(rng, 'noun')} {rng.choice(['Square', 'Station', 'Street', 'Gate'])}",
    "restaurant": lambda rng: rng.choice([_title(rng), f"Chez {_pick(rng, 'first')}", f"{_madeup(rng)} Bistro"]),
    "vs": lambda rng: f"{_pick(rng, 'last')} v. {rng.choice([_pick(rng, 'last'), _company(rng)])}",
    "season": lambda rng: f"{(year := rng.randint(1995, 2023))}-{year + 1}",
    "season2": lambda rng: f"{rng.choice(['fall', 'spring', 'summer', 'winter'])} {rng.randint(2020, 2027)}",
    "team": lambda rng: f"{rng.choice([_pick(rng, 'city'), _madeup(rng)])} {_pick(rng, 'mascot')}",
    "dna": lambda rng: "".join(rng.choice("ACGT") for _ in range(rng.randint(6, 18))),
    "fen": lambda rng: f"8/{rng.randint(1, 7)}k{rng.choice('pqrnb')}5/8/{rng.randint(1, 7)}P6/8/4K3/8/8 w",
    "n": lambda rng: str(rng.randint(3, 900)),
}


def words_of(name: str) -> str:
    """The words of an identifier: flight_number and flightNumber are "flight number"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").lower().strip()
