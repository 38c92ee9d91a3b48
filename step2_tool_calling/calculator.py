"""A calculator that can only calculate.

`eval` on a model's text would hand the model (and whoever wrote what it read) this process. So the text is parsed to
Python's syntax tree and only a list of node types, functions and constants is evaluated, by the code below; whatever
is not on the list is refused. Sizes are bounded before they are computed: 9**9**9 is seven characters and 370 million
digits.

What can be exact is: + - * / // % and whole powers work on fractions, of the decimals as they stand there, so that
12345678901234567890 / 10 keeps its digits and 0.1 + 0.2 is 0.3. Functions and roots work on floats.

    python -c 'from step2_tool_calling.calculator import calculate; print(calculate("15% of 80 + sqrt(2)"))'
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from decimal import Context, Decimal, Inexact, localcontext
from fractions import Fraction

from step2_tool_calling.tool import ToolError

MAX_LENGTH = 300  # characters
MAX_DEPTH = 40  # nested operations
MAX_BITS = 1024  # of an integer: the range of a float, 309 digits
MAX_FACTORIAL = 170  # the largest below 2**1024
MAX_EXPONENT = 20  # of a decimal that is taken as it stands; 6.02e23 is a measurement, 1e-999999999 a bomb

Number = int | Fraction | float  # a Fraction is never whole


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, int) and not isinstance(base, float):
        # Numerator and denominator are at least 2**(bits - 1), so their powers have more than that times exponent bits.
        fits = (_bits(base) - 1) * abs(exponent) <= MAX_BITS
        if fits:
            return Fraction(base) ** exponent
        if isinstance(base, int) and exponent > 0:
            raise OverflowError
    result = float(base) ** float(exponent)
    if isinstance(result, complex):
        raise ToolError("a negative number to a fractional power is not a real number")
    return result


def _divide(a: Number, b: Number) -> Number:
    return a / b if isinstance(a, float) or isinstance(b, float) else Fraction(a) / Fraction(b)


def _bits(number: int | Fraction) -> int:
    """Bits of the number, or of the longer part of a fraction."""
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _factorial(n: Number) -> int:
    if n != int(n) or not 0 <= n <= MAX_FACTORIAL:
        raise ToolError(f"factorial takes a whole number from 0 to {MAX_FACTORIAL}")
    return math.factorial(int(n))


def _comb(n: Number, k: Number) -> int:
    if n != int(n) or k != int(k) or not 0 <= n <= 1000 or k < 0:
        raise ToolError("comb takes two whole numbers, the first from 0 to 1000")
    return math.comb(int(n), int(k))


def _round(value: Number, digits: Number = 0) -> Number:
    if digits != int(digits) or not -20 <= digits <= 20:  # round(5, -10**9) would compute 10**10**9
        raise ToolError("round takes a whole number of digits from -20 to 20")
    if digits == 0:
        return round(value)
    return round(value, int(digits)) if isinstance(value, float) else round(Fraction(value), int(digits))


OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
FUNCTIONS: dict[str, Callable[..., Number]] = {
    **{name: getattr(math, name) for name in ("sqrt", "log", "log2", "log10", "exp", "floor", "ceil")},
    **{name: getattr(math, name) for name in ("sin", "cos", "tan", "asin", "acos", "atan", "degrees", "radians")},
    "abs": abs,
    "min": min,
    "max": max,
    "round": _round,
    "factorial": _factorial,
    "comb": _comb,
}
CONSTANTS = {"pi": math.pi, "e": math.e}


def calculate(expression: str) -> str:
    """Compute an arithmetic expression. Use it for every sum, product, percentage, power or root.

    Args:
        expression: For example "(12.5 + 7) * 3", "15% of 80", "2**10" or "sqrt(2)". Operators + - * / // % **;
            functions sqrt, log, log2, log10, exp, sin, cos, tan, asin, acos, atan (radians), degrees, radians, abs,
            round, min, max, floor, ceil, factorial, comb; constants pi and e.

    Returns:
        Both sides: "15% of 80 = 12".
    """
    return f"{expression.strip().removesuffix('=').strip()} = {_written(evaluate(expression))}"


def evaluate(expression: str) -> Number:
    """Return the value of an expression that `calculate` takes: exact, or a float where a function or root is in it.

    Raises ToolError for what is not arithmetic, has no real value, or is too long, too deep or too large.
    """
    if len(expression) > MAX_LENGTH:
        raise ToolError(f"the expression is longer than {MAX_LENGTH} characters; calculate it in parts")
    try:
        text = _as_python(expression)
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolError(f"cannot read {expression!r} as arithmetic; write it like (12.5 + 7) * 3") from None
    try:
        result = _evaluate(tree.body, text, MAX_DEPTH)
        if not math.isfinite(result):
            raise OverflowError
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise ToolError("the result is too large; numbers up to about 1e308 can be computed") from None
    except RecursionError:  # quoting a refused part, "~~~~...1"
        raise ToolError(f"cannot read {expression!r} as arithmetic") from None
    except (ValueError, TypeError) as error:  # sqrt(-1), log(0); sqrt(1, 2)
        raise ToolError(f"cannot calculate {expression!r}: {error}") from None
    if isinstance(result, float):
        # sin(radians(30)) is 0.5 and not 0.49999999999999994; 12 digits is what a good desk calculator shows.
        result = float(f"{result:.12g}") if abs(result) < 1e10 else result
        return int(result) if result.is_integer() and abs(result) < 1e15 else result
    return result


def _written(number: Number) -> str:
    """Write a result: exact where that takes at most 15 significant digits or 12 decimal places, else rounded.

    Rounded means 12 significant digits, and 15 for large numbers. Where even these leave nothing behind the point,
    there is an exponent, so that what looks like a whole number is one: 10**15 / 7 is 1.42857142857143e+14.
    """
    if isinstance(number, int):
        return str(number)
    if isinstance(number, Fraction):
        with localcontext(Context(prec=330)) as context:  # more digits than MAX_BITS, so whole parts are kept
            value = (Decimal(number.numerator) / number.denominator).normalize()
            exact = not context.flags[Inexact]
        _, digits, places = value.as_tuple()
        if exact and len(digits) <= 15:
            return in_digits(float(value))
        if exact and isinstance(places, int) and places >= -12:
            return f"{value:f}"
    approximate = float(number)
    rounded = float(f"{approximate:.12g}")
    if rounded.is_integer() or abs(approximate) >= 1e10:
        rounded = float(f"{approximate:.15g}")
    if rounded.is_integer() and rounded != number:
        return f"{rounded:.14e}"
    return in_digits(rounded)


def in_digits(number: int | float) -> str:
    """Write a number for a sentence: 1234567, 0.1, 80 (not 1.23457e+06, not 80.0).

    Only floats of more than 20 digits before or behind the point keep their exponent: 1e+30, 1e-30.
    """
    text = str(number + 0)  # -0.0 becomes 0
    if 1e-20 < abs(number) < 1e20:
        text = f"{Decimal(text):f}"
    return text.removesuffix(".0")


def _as_python(text: str) -> str:
    """Turn the signs people write into Python's: × ÷ − ^, a closing "=", and percentages.

    A percent sign right behind a number, with no number after it, is a percentage; elsewhere it is the remainder.
    """
    for sign, python in (("×", "*"), ("·", "*"), ("÷", "/"), ("−", "-"), ("^", "**")):
        text = text.replace(sign, python)
    text = text.strip().removesuffix("=").strip()
    number = r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)"
    # Desk calculators read 200 + 10% as 220, mathematics as 200.1: neither is a safe guess.
    if re.search(rf"[+-]\s*{number}%\s*(?![\s\w.(])", text) or re.search(rf"{number}%\s*[+-]", text):
        raise ToolError('say what the percentage is of: "200 + 10% of 200", not "200 + 10%"')
    if re.search(rf"(/|\*\*|%)\s*{number}\s*%\s*of\b", text):
        raise ToolError('put the percentage in parentheses: "100 / (20% of 50)"')
    text = re.sub(rf"{number}\s*%\s*of\b", r"(\1/100)*", text)
    return re.sub(rf"{number}%\s*(?![\s\w.(])", r"(\1/100)", text)


def _as_it_stands(text: str, value: float) -> Number:
    """The decimal itself, not the float nearest to it."""
    exponent = text.lower().partition("e")[2]
    return value if exponent and abs(int(exponent)) > MAX_EXPONENT else Fraction(text)


def _evaluate(node: ast.expr, text: str, depth: int) -> Number:
    if depth == 0:
        raise ToolError(f"the expression is nested more than {MAX_DEPTH} deep; calculate it in parts")
    result: Number
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            result = value
        case ast.Constant(value=float() as value):
            result = _as_it_stands(ast.get_source_segment(text, node) or "", value)
        case ast.Name(id=name) if name in CONSTANTS:
            result = CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_evaluate(operand, text, depth - 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            result = _evaluate(operand, text, depth - 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            result = OPERATORS[type(op)](_evaluate(left, text, depth - 1), _evaluate(right, text, depth - 1))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            result = FUNCTIONS[name](*(_evaluate(argument, text, depth - 1) for argument in arguments))
        case ast.Tuple():
            raise ToolError("write numbers without thousands separators: 1234.5, not 1,234.5")
        case _:
            known = f"numbers, + - * / // % **, {', '.join([*FUNCTIONS, *CONSTANTS])}"
            raise ToolError(f"{ast.unparse(node)[:60]!r} is not arithmetic; the calculator knows {known}")
    if isinstance(result, Fraction):
        if result.denominator == 1:
            result = int(result)
        elif _bits(result) > MAX_BITS:  # 1.0001**10000: exact digits would be as many as there are steps
            return float(result)
    if isinstance(result, int) and result.bit_length() > MAX_BITS:
        raise OverflowError
    return result
