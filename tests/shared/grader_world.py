"""A small world in the form of the grader's artifacts: articles, stories and questions that fit on a page.

Every article has two passages with a question each, on words of its own; every story has four parts.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

ARTICLES = 40
STORIES = 12
THEMES = ["harbour", "garden", "railway", "castle", "museum", "bridge", "theatre", "mill"]


def word(rng: Random) -> str:
    return "".join(rng.choice("bdfgklmnprstv") + rng.choice("aeiou") for _ in range(3))


def article(number: int) -> list[dict[str, Any]]:
    """Two rows of (title, question, passage): both on one topic, and on a theme that other articles have too."""
    rng = Random(number)
    topic, place, person = word(rng), word(rng).title(), f"{word(rng).title()} {word(rng).title()}"
    year, size, theme = 1700 + number, 100 + number, THEMES[number % len(THEMES)]
    first = (
        f"The {topic} {theme} of {place} (built in {year}) was opened by {person} in a ceremony. In {year + 3}, the "
        f"tower reached {size} metres. It is visited by {word(rng)} groups from {word(rng).title()} each year."
    )
    second = (
        f"Visitors of the {topic} {theme} were asked to pay {size + 7} coins by {word(rng).title()} Bo. "
        f"During the war in {year + 40}, the cellar was used as a {word(rng)} store by the town council of {place}."
    )
    return [
        {
            "title": f"{topic} of {place}",
            "question": f"was the {topic} {theme} tower opened in {place}",
            "passage": first,
        },
        {
            "title": f"{topic} of {place}",
            "question": f"do visitors of the {topic} {theme} cellar pay",
            "passage": second,
        },
    ]


def story(number: int) -> list[dict[str, Any]]:
    """Rows of one summary: a hero per part, each with a question that this part answers."""
    rng = Random(f"story {number}")
    heroes = [(word(rng).title(), word(rng), word(rng)) for _ in range(4)]
    parts = [
        f"On day {n + 1} the traveller {name} looked for the {thing} in the old {place} beyond the river. "
        f"It rained on the {' and the '.join(word(rng) for _ in range(15))} while the others stayed in the house. "
        f"When the {thing} was found, {name} brought it to the market of {word(rng)}, where nobody bought it."
        for n, (name, thing, place) in enumerate(heroes)
    ]
    return [
        {
            "question": f"Who looked for the {thing} in the {place}?",
            "answer": [name, f"{name}."],
            "passage": " ".join(parts),
        }
        for name, thing, place in heroes
    ]


def write_world(folder: Path, planted: list[dict[str, Any]] | None = None) -> dict[str, Path]:
    """Write the artifacts; return name → path, as `fetch` would. planted: more training rows of BoolQ."""
    rows = [row for number in range(ARTICLES) for row in article(number)]
    dev = rows[: len(rows) // 4]
    labelled = [
        {"question": row["question"], "passage": f"{row['title']} -- {row['passage']}", "idx": n, "label": True}
        for n, row in enumerate([*rows, *(planted or [])])
    ]
    (folder / "boolq").mkdir(parents=True)
    _write(folder / "boolq/dev.jsonl", [row | {"answer": "True"} for row in dev])
    _write(folder / "boolq/combined.jsonl", [*labelled, {"question": "no label", "passage": "x -- y", "idx": 0}])
    _write(folder / "narrativeqa.jsonl", [row for number in range(STORIES) for row in story(number)])
    asked = "Question: Who found the lamp?\n Context: The lamp of the seven sleepy sailors was found on a cold morning"
    rows = [{"input": [{"role": "system", "content": "…"}, {"role": "user", "content": asked}], "ideal": "Unsolveable"}]
    _write(folder / "unsolvable.jsonl", rows)
    return {
        "boolq": folder / "boolq",
        "narrativeqa": folder / "narrativeqa.jsonl",
        "unsolvable-questions": folder / "unsolvable.jsonl",
    }


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
