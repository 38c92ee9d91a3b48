"""The unit conversion: right answers, and texts that try to run code or fill the memory.

python -m pytest tests/step2/test_units.py
"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step2_tool_calling.tool import ToolError
from step2_tool_calling.units import convert_units

pytestmark = pytest.mark.timeout(60)  # a bomb that goes off would otherwise take the machine along


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (60, "mph", "km/h", 96.5606),
        (60, "miles per hour", "kilometers per hour", 96.5606),
        (100, "km/h", "Miles Per Hour", 62.1371),
        (100, "kmh", "m/s", 27.7778),
        (20, "celsius", "fahrenheit", 68),
        (20, "degC", "degF", 68),
        (20, "°C", "°F", 68),
        (20, "C", "F", 68),
        (32, "degrees Fahrenheit", "degrees Celsius", 0),
        (-40, "Fahrenheit", "centigrade", -40),
        (0, "K", "celsius", -273.15),
        (1, "mile", "km", 1.6093),
        (10, "KM", "mi", 6.2137),
        (5, "kg", "lbs", 11.0231),
        (6, "feet", "cm", 182.88),
        (12, "inches", "in", 12),
        (1, "square mile", "km²", 2.59),
        (1, "sq ft", "square meter", 0.092903),
        (1, "m^2", "cm**2", 10000),
        (1, "meters squared", "square centimeters", 10000),
        (1, "m³", "liters", 1000),
        (1, "cubic meter", "US gallons", 264.1721),
        (1, "nautical mile", "km", 1.852),
        (8, "fluid ounces", "ml", 236.5882),
        (1, "kilowatt-hour", "joule", 3600000),
        (1, "kWh", "newton meter", 3600000),
        (1, "light-year", "km", 9460730472580.8),
        (1, "GB", "MB", 1000),
        (1, "nm", "km", 1e-12),
        (60, "1/min", "Hz", 1),
        (1, "W/m^2/K", "W / m**2 / K", 1),
        (36, "km·h^-1", "m s^-1", 10),
        (1, "mmHg", "pascal", 133.3224),
    ],
)
def test_conversions(value: float, source: str, target: str, expected: float) -> None:
    assert figure(convert_units(value, source, target), source, target) == pytest.approx(expected, rel=1e-5, abs=1e-15)


def figure(sentence: str, source: str, target: str) -> float:
    """The result in "60 mph = 96.5606 km/h"."""
    asked, result = sentence.split(" = ")
    assert asked.endswith(f" {source}")
    assert result.endswith(f" {target}")
    return float(result.removesuffix(f" {target}"))


@pytest.mark.parametrize(
    ("value", "source", "target", "sentence"),
    [
        (42, "km", "mile", "42 km = 26.0976 mile"),
        (1.0, "mile", "km", "1 mile = 1.6093 km"),
        (1234567, "g", "kg", "1234567 g = 1234.567 kg"),
        (1234.567, "km", "m", "1234.567 km = 1234567 m"),
        (0.1, "kWh", "J", "0.1 kWh = 360000 J"),
        (1, "mm", "mile", "1 mm = 0.000000621371 mile"),
        (32, "°F", "°C", "32 °F = 0 °C"),
        (31.99999, "°F", "°C", "31.99999 °F = 0 °C"),
        (0, "m", "km", "0 m = 0 km"),
    ],
)
def test_results_are_short_sentences(value: float, source: str, target: str, sentence: str) -> None:
    assert convert_units(value, source, target) == sentence


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("kg", "meter", "kg .mass. cannot be converted to meter .length."),
        ("mph", "celsius", "mph .length / time. cannot be converted to celsius .temperature."),
        ("EUR", "NOK", "unknown unit 'EUR'; write it like km/h, kg, celsius or square meter"),
        ("", "m", "unknown unit ''"),
        ("m/", "m", "unknown unit"),
        ("degC/hour", "K/hour", "use kelvin"),
        ("m" * 61, "m", "at most 60 characters"),
    ],
)
def test_unit_mistakes_are_explained(source: str, target: str, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        convert_units(1, source, target)


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('true')",
        "m.__class__",
        "__class__",
        "_registry",
        "UnitRegistry",
        "parse_units",
        "lambda: 1",
        "m if 1 else m",
        "9**9**9 m",
        "9**9**9**9",
        "m**9**9**9**9",
        "m^9^9",
        "(m^9)^9",
        "((((m**9)**9)**9)**9)**9",
        "m^99999999",
        "m^-99",
        "square square square square square m",
        "m squared squared squared squared",
        "cubic square m",
        "1e999 m",
        "99999999999999999999 m",
        "m+1",
        "m - m",
        "m, m",
        "m\n*m",
        "(" * 30 + "m" + ")" * 30,
        "m\0",
        "\ud800",
        "m²²",
        "⁹",
        "%",
    ],
)
def test_units_are_words_and_small_exponents_only(attack: str) -> None:
    with pytest.raises(ToolError):
        convert_units(1, attack, "m")
    with pytest.raises(ToolError):
        convert_units(1, "m", attack)


@pytest.mark.parametrize(
    ("value", "source", "target"),
    [
        (1e308, "km^9", "m^9"),
        (1, "quettameter^9*quettameter^9", "quectometer^9*quectometer^9"),
        (float("nan"), "m", "km"),
        (float("inf"), "m", "km"),
    ],
)
def test_numbers_that_cannot_be_written(value: float, source: str, target: str) -> None:
    with pytest.raises(ToolError, match="too large|finite|Result too large|cannot convert"):
        convert_units(value, source, target)


@settings(max_examples=150)
@given(st.text(alphabet="msKgChr/*^-23 ²°()._9", max_size=30), st.sampled_from(["m", "K", "m/s", "kg*m^2/s^2"]))
def test_any_unit_gives_a_number_or_a_tool_error(source: str, target: str) -> None:
    try:
        sentence = convert_units(2.5, source, target)
    except ToolError:
        return
    assert math.isfinite(figure(sentence, source, target))
