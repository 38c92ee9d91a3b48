"""The calculator and the unit conversion: right answers, and texts that try to run code or fill the memory.

python -m pytest tests/step2/test_calculator.py
"""

import math
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step2_tool_calling.calculator import calculate
from step2_tool_calling.tool import ToolError
from step2_tool_calling.units import convert_units

pytestmark = pytest.mark.timeout(60)  # a bomb that goes off would otherwise take the machine along


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("-2**2", -4),
        ("2**-1", 0.5),
        ("2**3**2", 512),
        ("7 / 2", 3.5),
        ("80 * 11.6", 928),
        ("7 // 2", 3),
        ("17 % 5", 2),
        ("17 % -5", -3),
        ("0.1 + 0.2", 0.3),
        ("1/3", 0.333333333333),
        ("1e3 + .5", 1000.5),
        ("+--3", 3),
        ("sqrt(16) + log10(1000)", 7),
        ("log(8, 2)", 3),
        ("round(2/3, 2)", 0.67),
        ("round(1234, -2)", 1200),
        ("max(1, 2.5, -3) - min(4, 2)", 0.5),
        ("floor(-1.5) + ceil(1.2)", 0),
        ("factorial(20)", 2432902008176640000),
        ("comb(52, 5)", 2598960),
        ("sin(radians(30))", 0.5),
        ("2*pi", 6.28318530718),
        ("e**0", 1),
        ("2**100", 1267650600228229401496703205376),
        # as people write
        ("2^10", 1024),
        ("6 × 7 ÷ 2 − 1", 20),
        ("  3 + 4 = ", 7),
        ("15% of 80", 12),
        ("12.5 % of 80", 10),
        ("3 + 15% of 80 * 2", 27),
        ("100 - 20% of 50", 90),
        ("15%", 0.15),
        ("200 * 10%", 20),
        ("max(5%, 0.01)", 0.05),
        ("100 / 20%", 500),
        ("17%5", 2),
        ("17% 5", 2),
    ],
)
def test_results(expression: str, expected: float) -> None:
    result = calculate(expression)
    assert result == pytest.approx(expected, rel=1e-12)
    assert isinstance(result, int) == isinstance(expected, int)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1/0", "division by zero"),
        ("5 % 0", "division by zero"),
        ("0**-1", "division by zero"),
        ("sqrt(-1)", "math domain error"),
        ("log(0)", "math domain error"),
        ("(-8)**(1/3)", "not a real number"),
        ("2 +", "cannot read"),
        ("", "cannot read"),
        ("two plus two", "cannot read"),
        ("1,234.5 + 1", "thousands separators"),
        ("200 + 10%", "say what the percentage is of"),
        ("10% - 3", "say what the percentage is of"),
        ("100 / 20% of 50", "put the percentage in parentheses"),
        ("x + 1", "'x' is not arithmetic; the calculator knows numbers"),
        ("sqrt(1, 2)", "exactly one argument"),
        ("factorial(2.5)", "whole number"),
        ("round(2.5, 0.5)", "whole number"),
    ],
)
def test_mistakes_are_explained(expression: str, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        calculate(expression)


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        "(1).__class__",
        "pi.real",
        "sqrt.__self__",
        "open('/etc/passwd').read()",
        "eval('1')",
        "exec('1')",
        "globals()",
        "lambda: 1",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "{1: 2}",
        "[1][0]",
        "'a' * 9",
        "b'a'",
        "f'{1}'",
        "f'{__import__(\"os\")}'",
        "True + 1",
        "None",
        "...",
        "1j * 1j",
        "1 if 1 else 2",
        "1 < 2",
        "1 and 2",
        "not 1",
        "~1",
        "1 << 9999999999",
        "7 | 8",
        "(x := 5)",
        "x = 5",
        "import os",
        "1; 2",
        "1\n2",
        "max(*(1, 2))",
        "max(1, key=abs)",
        "sqrt(x=4)",
        "sqrt",
        "abs(max)",
        "pi(2)",
        "sqrt(4)(1)",
        "yield 1",
        "await 1",
        "1\0",
        "\ud800",
        "~" * 290 + "1",
    ],
)
def test_nothing_but_arithmetic_is_evaluated(attack: str) -> None:
    with pytest.raises(ToolError):
        calculate(attack)


@pytest.mark.parametrize(
    "bomb",
    [
        "9**9**9",
        "9**9**9**9",
        "(9**9)**(9**9)",
        "-9**9**9",
        "2**99999999999",
        "2**1024",
        "10**308 * 10**308",
        "((((2**999)**999)**999)**999)",
        "1e308 * 10",
        "1e999",
        "exp(1e9)",
        "2.0**1e9",
        "factorial(171)",
        "factorial(10**9)",
        "factorial(factorial(20))",
        "factorial(-1)",
        "comb(10**9, 10**8)",
        "comb(1000, -1)",
        "round(5, -10**9)",
        "round(5.5, 10**9)",
        "floor(1e308) * floor(1e308)",
        "sqrt(2**1000 * 2**100)",
        "1" * 400,
        "9" * 299 + "*" + "9",
        "(" * 100 + "1" + ")" * 100 + "**" * 3,
        "-" * 290 + "1",
        "+".join(["1"] * 140),
        "abs(" * 60 + "1" + ")" * 60,
    ],
)
def test_bombs_are_refused_before_they_go_off(bomb: str) -> None:
    with pytest.raises(ToolError):
        calculate(bomb)


@pytest.mark.parametrize("fine", ["2**1023", "factorial(170)", "1**(10**300)", "0**(10**300)", "(-1)**(10**300)"])
def test_large_but_allowed(fine: str) -> None:
    assert math.isfinite(calculate(fine))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=string.digits + "+-*/%.,()e ^~[]{}_abcos'\"\\\n=:@<" + "×÷", max_size=60))
def test_any_text_gives_a_finite_number_or_a_tool_error(text: str) -> None:
    try:
        result = calculate(text)
    except ToolError:
        return
    assert type(result) in (int, float)
    assert math.isfinite(result)


# -- units -------------------------------------------------------------------------------------------------------------


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
    result = convert_units(value, source, target)
    assert result["result"] == pytest.approx(expected, rel=1e-5, abs=1e-15)
    assert result["unit"] == target


def test_results_are_short() -> None:
    assert convert_units(1, "mile", "km") == {"result": 1.6093, "unit": "km"}
    assert convert_units(1, "mm", "mile") == {"result": 6.21371e-07, "unit": "mile"}


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


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="msKgChr/*^-23 ²°()._9", max_size=30), st.sampled_from(["m", "K", "m/s", "kg*m^2/s^2"]))
def test_any_unit_gives_a_number_or_a_tool_error(source: str, target: str) -> None:
    try:
        result: Any = convert_units(2.5, source, target)["result"]
    except ToolError:
        return
    assert math.isfinite(result)
