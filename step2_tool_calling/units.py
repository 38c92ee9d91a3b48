"""Unit conversion over pint's table of a thousand units, behind a grammar of our own.

pint evaluates unit expressions like arithmetic ("9**9**9 meter" is a memory bomb, though not code). So an expression is
taken apart here, and pint sees single words only. pint takes half a second to load, so it is loaded by the first call.

    python -c 'from step2_tool_calling.units import convert_units; print(convert_units(60, "mph", "km/h"))'
"""

import math
import operator
import re
from functools import lru_cache, reduce
from typing import TYPE_CHECKING

from step2_tool_calling.calculator import in_digits
from step2_tool_calling.tool import ToolError

if TYPE_CHECKING:
    from pint import UnitRegistry
    from pint.facets.plain import PlainUnit as Unit

MAX_LENGTH = 60
# What people write and pint does not know, or knows as something else (C is coulomb, F farad, c the speed of light).
SPELLINGS = {
    "c": "degC",
    "f": "degF",
    "°c": "degC",
    "°f": "degF",
    "centigrade": "degC",
    "degrees_celsius": "degC",
    "degree_celsius": "degC",
    "degrees_fahrenheit": "degF",
    "degree_fahrenheit": "degF",
    "kmh": "km/hour",
    "kmph": "km/hour",
    "us_gallon": "gallon",
    "us_gallons": "gallon",
    "sqm": "m^2",
    "sqft": "ft^2",
}
SUPERSCRIPTS = str.maketrans({"²": "^2", "³": "^3"})
# One factor: "meters", "fluid ounces", "m^2", "s^-1"; the word may contain digits (mmH2O), the exponent is one digit.
FACTOR = re.compile(r"([^\W\d]\w*|°\w+)(?:\^(-?[1-9]))?")


@lru_cache(maxsize=1)
def _registry() -> "UnitRegistry[float]":
    import pint

    return pint.UnitRegistry()


def convert_units(value: float, from_: str, to: str) -> str:
    """Convert a measurement from one unit to another: length, mass, temperature, speed, volume, energy and so on.

    Args:
        value: The number to convert.
        from_: The unit it is in, for example "mile", "km/h", "celsius" or "square foot".
        to: The unit to convert to, of the same kind.

    Returns:
        Both sides, the result to 4 decimals (6 significant digits below 1): "42 km = 26.0976 mile".
    """
    from pint import DimensionalityError, PintError

    if not math.isfinite(value):
        raise ToolError("the value must be a finite number")
    source, target = _unit(from_), _unit(to)
    try:
        result = float(_registry().Quantity(value, source).to(target).magnitude)
    except DimensionalityError:
        kinds = _kind(source), _kind(target)
        if kinds[0] == kinds[1]:  # degC/hour: a scale with a zero of its own cannot be a factor
            raise ToolError("use kelvin where a temperature is part of a larger unit") from None
        raise ToolError(
            f"{from_} ({kinds[0]}) cannot be converted to {to} ({kinds[1]}); use units of one kind"
        ) from None
    except (PintError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ToolError(f"cannot convert {from_} to {to}: {str(error)[:200]}") from None
    if not math.isfinite(result):
        raise ToolError(f"{value} {from_} is too large a number of {to}")
    # Temperatures are shifted as well as scaled, so 32 F would come out as 5.7e-14 C.
    small = abs(result) < 1 and _kind(source) != "temperature"
    rounded = float(f"{result:.6g}") if small else round(result, 4)
    return f"{in_digits(value)} {from_} = {in_digits(rounded)} {to}"


def _unit(text: str) -> "Unit":
    """Read a unit: words joined by spaces, *, /, "per", each with an exponent at most. Raises ToolError.

    After a slash only the next factor is divided: W/m^2/K, as in physics, needs no parentheses.
    """
    if len(text) > MAX_LENGTH:
        raise ToolError(f"a unit has at most {MAX_LENGTH} characters")
    plain = text.strip().translate(SUPERSCRIPTS).replace("**", "^").replace("·", "*").replace(" ^", "^")
    plain = re.sub(r"\b(square|sq|cubic|cu)[ _.]+([^\W\d]+)", _power_word, plain, flags=re.IGNORECASE)
    plain = re.sub(r"([^\W\d]+) (squared|cubed)\b", _power_word, plain, flags=re.IGNORECASE)
    plain = re.sub(r"\s+per\s+", "/", plain, flags=re.IGNORECASE)
    unit = _registry().Unit("")
    for i, part in enumerate(plain.removeprefix("1").split("/")):
        if i == 0 and not part and plain.startswith("1/"):  # 1/s
            continue
        for factor in part.split("*"):
            one = _factor(factor.strip(), text)
            unit = unit / one if i else unit * one
    return unit


def _power_word(match: re.Match[str]) -> str:
    first, second = match[1].lower(), match[2].lower()
    word, power = (match[2], first) if first in ("square", "sq", "cubic", "cu") else (match[1], second)
    return f"{word}^{2 if power.startswith('sq') else 3}"


def _factor(text: str, whole: str) -> "Unit":
    """One factor. Several words are first tried as one unit (nautical mile, kilowatt-hour), then as a product."""
    words = re.split(r"[\s-]+(?=[^\W\d])", text)  # the minus of s^-1 is no hyphen
    for candidates in (["_".join(words)], words):
        units = [unit for unit in map(_power, candidates) if unit is not None]
        if len(units) == len(candidates):
            return reduce(operator.mul, units)
    raise ToolError(f"unknown unit {whole!r}; write it like km/h, kg, celsius or square meter")


def _power(text: str) -> "Unit | None":
    """A word with an exponent at most; None when it is not a unit."""
    match = FACTOR.fullmatch(text)
    if match is None:
        return None
    word, exponent = match[1], int(match[2] or 1)
    if spelling := SPELLINGS.get(word.lower()):
        return _unit(spelling) ** exponent
    for candidate in (word, word.lower()):  # as written first: Mm is not mm, but KM is km
        if _registry().parse_unit_name(candidate):
            return _registry().Unit(candidate) ** exponent
    return None


def _kind(unit: "Unit") -> str:
    return str(unit.dimensionality).replace("[", "").replace("]", "")
