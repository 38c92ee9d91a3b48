"""Measured results as data, and the README tables made from them.

A benchmark writes one JSON file (`write_results`) that also says on which machine, with which versions and at which
commit it ran. READMEs never repeat a number by hand: they hold blocks (results_pages.py), which the first command fills
and the second compares, so a table cannot drift from what was measured.

    python -m shared.results render     # rewrite the blocks of every Markdown file below the current directory
    python -m shared.results check      # exit 1 and name the files that are out of date
"""

import datetime
import json
import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, SupportsFloat, TypedDict

from shared.errors import UserError
from shared.files import atomic_write
from shared.provenance import git_revision, hardware, versions

MISSING = "–"


class Metric(TypedDict):
    """One measured value. An int is a count and is shown whole; None means that it was not measured."""

    value: float | int | None
    ci95: list[float] | None
    unit: NotRequired[str]
    digits: NotRequired[int]  # significant digits in tables, in place of 3


class Row(TypedDict):
    """One line of a table: a system, a setting, a model."""

    name: str
    metrics: dict[str, Metric]


def metric(
    value: SupportsFloat | None,
    ci95: tuple[float, float] | None = None,
    *,
    unit: str | None = None,
    digits: int | None = None,
) -> Metric:
    """Build a Metric, e.g. `metric(*mean_ci(values))` or `metric(*wilson_ci(right, n))`; numpy scalars are fine."""
    plain = value if value is None else int(value) if isinstance(value, numbers.Integral) else float(value)
    result: Metric = {"value": plain, "ci95": None if ci95 is None else [float(ci95[0]), float(ci95[1])]}
    if unit is not None:
        result["unit"] = unit
    if digits is not None:
        result["digits"] = digits
    return result


# -- the JSON file -----------------------------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _metric_problem(entry: object) -> str | None:
    """Return what is wrong with one metric, or None."""
    if not isinstance(entry, dict) or "value" not in entry or "ci95" not in entry:
        return 'must be {"value": number, "ci95": [low, high] or null}'
    if entry["value"] is not None and not _is_number(entry["value"]):
        return f"value must be a finite number or null, not {entry['value']!r}"
    ci95 = entry["ci95"]
    pair = isinstance(ci95, list) and len(ci95) == 2 and all(map(_is_number, ci95))
    if ci95 is not None and not (pair and ci95[0] <= ci95[1]):
        return f"ci95 must be [low, high] or null, not {ci95!r}"
    if not isinstance(entry.get("unit", ""), str):
        return "unit must be text"
    digits = entry.get("digits", 3)
    return None if type(digits) is int and digits >= 1 else "digits must be a whole number of at least 1"


def _problem(document: object) -> str | None:
    """Return what is wrong with a results document, or None."""
    if not isinstance(document, dict):
        return "must be a JSON object"
    shape: dict[str, type] = {"command": str, "git_revision": str, "hardware": dict, "versions": dict, "rows": list}
    for key, kind in shape.items():
        if not isinstance(document.get(key), kind):
            return f"needs {key!r} as {kind.__name__}"
    if document.get("n") is not None and type(document["n"]) is not int:
        return "'n' must be a whole number or null"
    for index, row in enumerate(document["rows"]):
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("name"), str)
            or not isinstance(row.get("metrics"), dict)
        ):
            return f"rows[{index}] must be {{name: text, metrics: object}}"
        for name, entry in row["metrics"].items():
            if problem := _metric_problem(entry):
                return f"rows[{index}] ({row['name']}), metric {name!r}: {problem}"
    return None


def write_results(
    path: Path | str,
    *,
    command: str,
    rows: Sequence[Row],
    n: int | None = None,
    notes: str | None = None,
    packages: Sequence[str] = ("torch",),
) -> None:
    """Write rows with the machine, versions and commit they were measured on, atomically.

    command: what a reader types to measure again. n: items or repetitions behind each row.
    packages: distributions whose version could change the numbers.
    Raises ValueError when a row is malformed or a number is not finite: that is the caller's bug.
    """
    document = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "git_revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(*packages),
        "n": n,
        "notes": notes,
        "rows": list(rows),
    }
    if problem := _problem(document):
        raise ValueError(problem)
    atomic_write(path, json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_results(path: Path | str) -> dict[str, Any]:
    """Read a results file. Raises UserError that names the file and the first thing wrong with it."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the benchmark that writes it") from None
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not UTF-8
        raise UserError(f"{path} is not readable as JSON: {error}") from None
    if problem := _problem(document):
        raise UserError(f"{path}: {problem}")
    assert isinstance(document, dict)
    return document


# -- tables in Markdown ------------------------------------------------------------------------------------------------


def _decimals(number: float, digits: int) -> int:
    """Return how many decimals show `number` with that many significant digits; negative: round to tens, hundreds."""
    return digits - 1 - math.floor(math.log10(abs(number)))


def format_metric(entry: Metric | None) -> str:
    """Return a table cell: `12.3 [11.9, 12.8]`, `1,024`, or `–` for what was not measured.

    A number and the ends of its interval get the same decimals: three significant digits of the value, but no finer
    than three of the interval's width, since 0.00100 [-0.12300, 0.12500] would claim a precision nobody measured.
    """
    if entry is None or entry["value"] is None:
        return MISSING
    value, ci95 = entry["value"], entry["ci95"]
    digits = entry.get("digits", 3)
    sizes = [value] if ci95 is None else [value, ci95[1] - ci95[0]]
    decimals = min((_decimals(size, digits) for size in sizes if size), default=digits - 1)
    if isinstance(value, int) and "digits" not in entry:
        decimals = 0 if ci95 is None else max(0, decimals)

    def show(number: float) -> str:
        # Rounding -0.001 gives -0.0, which prints as "-0.00"; adding 0.0 makes it plain zero.
        return f"{round(number, decimals) + 0.0:,.{max(0, decimals)}f}"

    text = show(value) if ci95 is None else f"{show(value)} [{show(ci95[0])}, {show(ci95[1])}]"
    return f"{text} {entry['unit']}" if "unit" in entry else text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str) -> list[str]:
    """Return a Markdown table, one string a line. A bar inside a cell would end it, so it is escaped."""
    lines = [list(header), [align if column else "---" for column in range(len(header))], *map(list, rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def results_table(
    document: dict[str, Any], columns: Sequence[str] | None = None, rows: Sequence[str] | None = None
) -> str:
    """Return the Markdown table of a results document and the line below it that says where it was measured.

    columns: metrics to show, in this order; all of them, in the order of first use, when None. rows: parts of names; a
    row that has one of them in its name is shown, all of them when None.
    Raises UserError for a column that no row has, and for a part that is in no name.
    """
    names = list(dict.fromkeys(name for row in document["rows"] for name in row["metrics"]))
    for column in columns or ():
        if column not in names:
            raise UserError(f"no row has a metric {column!r}; there are: {', '.join(names)}")
    for part in rows or ():
        if not any(part in row["name"] for row in document["rows"]):
            raise UserError(f"no row has {part!r} in its name")
    chosen = list(columns or names)
    shown = [row for row in document["rows"] if rows is None or any(part in row["name"] for part in rows)]
    cells = [[row["name"], *(format_metric(row["metrics"].get(name)) for name in chosen)] for row in shown]
    machine = document["hardware"]
    cores, memory = machine.get("cores"), machine.get("memory_gib")
    cpu = [machine.get("cpu"), cores and f"{cores} core{'s' * (cores != 1)}", memory and f"{memory:g} GiB"]
    where = [*cpu, machine.get("instruction_set"), machine.get("gpu")]
    provenance = [
        f"`{document['command']}`",
        ", ".join(str(part) for part in where if part),
        f"n = {document['n']:,}" if document.get("n") is not None else "",
        ", ".join(f"{package} {version}" for package, version in document["versions"].items()),
        f"revision {document['git_revision']}",
    ]
    return "\n".join([*_table(["", *chosen], cells, align="---:"), "", " · ".join(part for part in provenance if part)])


def settings_table() -> str:
    """Return the Markdown table of environment variables, from the fields of `shared.config.Settings`."""
    from shared.config import Settings

    rows = []
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`"
        if field.default_factory is not None:
            # What it returns differs from machine to machine; what it says about itself does not.
            default = (field.default_factory.__doc__ or "computed").splitlines()[0].rstrip(".")
            default = default[0].lower() + default[1:]
        rows.append([f"`{name.upper()}`", default, field.description or ""])
    return "\n".join(_table(["Variable", "Default", "Meaning"], rows, align="---"))


def main() -> None:
    """Run the command line: `python -m shared.results render|check`."""
    import typer

    from shared import terminal
    from shared.results_pages import outdated

    # Plain help text: importing rich's Markdown for it would take half of this command's time.
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        help="Keep the README tables equal to the results.",
    )

    @app.command()
    def render() -> None:
        """Rewrite the tables of every Markdown file below the current directory."""
        for page, text in outdated(Path.cwd()).items():
            atomic_write(page, text)
            print(page.relative_to(Path.cwd()))

    @app.command()
    def check() -> None:
        """Exit 1 and name the files whose tables differ from their results."""
        if stale := outdated(Path.cwd()):
            for page in stale:
                print(page.relative_to(Path.cwd()))
            raise UserError("tables are out of date; run: python -m shared.results render", exit_code=1)

    terminal.run(app)


if __name__ == "__main__":
    main()
