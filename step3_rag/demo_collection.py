"""The demo collection: a small encyclopaedia of 2,651 articles, made of the passages that BoolQ's questions are about.

People asked a search engine these questions ("can you really hear the ocean in a seashell"), and the passages are from
the Wikipedia articles that answered them, so the collection is curious, broad, and lawful to use and to pass on
(CC-BY-SA). The articles are plain Markdown files: open them, change one, ingest again, and see what happens.

    python -m step3_rag demo
    ls ~/.cache/llm-engineer-roadmap/step3/encyclopaedia/articles/

They hold the development part of BoolQ, which the evaluation asks about as well; the evaluation indexes the passages
themselves, one by one, in a collection of its own.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from shared import artifacts, catalog
from shared.files import atomic_write
from step3_rag.encoder import TextEncoder
from step3_rag.ingest import OnProgress, Report, ingest

COLLECTION = "encyclopaedia"
ARTIFACT = "boolq"

NOTICE = """# Attribution

The files in `articles/` are excerpts of articles of the English Wikipedia, by their authors, who are listed in each
article's history. They come from {source}.

Licence: Creative Commons Attribution-ShareAlike 3.0 (https://creativecommons.org/licenses/by-sa/3.0/), and so is
whatever you make of them.

Changes: passages of one article were put into one file under its title; a passage that repeats most of a longer one
was left out; typewriter quotation marks and dashes (``…'', --) became typographical ones.

| file | article |
| --- | --- |
"""


def articles(lines: Iterable[str]) -> dict[str, list[str]]:
    """Return title → paragraphs, both in the order of the data, from JSON lines with a title and a passage."""
    found: dict[str, list[str]] = {}
    for line in lines:
        record = json.loads(line)
        paragraphs = found.setdefault(_typeset(record["title"]), [])
        if (passage := _typeset(record["passage"])) not in paragraphs:
            paragraphs.append(passage)
    return {title: _without_repetition(paragraphs) for title, paragraphs in found.items()}


def _typeset(text: str) -> str:
    """Undo the tokeniser's ASCII: ``word'' and 1914--1918."""
    for before, after in (("``", "“"), ("'''", "'”"), ("''", "”"), ("--", "–")):
        text = text.replace(before, after)
    return " ".join(text.split())


def _without_repetition(paragraphs: Sequence[str]) -> list[str]:
    """Leave out what mostly repeats a longer paragraph: two questions may have found one passage at two dates."""
    kept: dict[str, set[str]] = {}
    for paragraph in sorted(paragraphs, key=len, reverse=True):
        sentences = set(paragraph.split(". "))
        if not any(len(sentences & others) > len(sentences) / 2 for others in kept.values()):
            kept[paragraph] = sentences
    return [paragraph for paragraph in paragraphs if paragraph in kept]


def markdown(title: str, paragraphs: Sequence[str]) -> str:
    """Return an article as CommonMark, in which the title reads back exactly (M*A*S*H has no emphasis)."""
    heading = re.sub(r"([\\`*_\[\]<>#&])", r"\\\1", title)
    return "\n\n".join([f"# {heading}", *paragraphs]) + "\n"


def file_names(titles: Iterable[str]) -> dict[str, str]:
    """Return title → file name: ASCII and lower case, so that every file system keeps them and keeps them apart."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for title in titles:
        ascii_title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        stem = "-".join(re.findall("[a-z0-9]+", ascii_title))[:80] or "article"
        number, name = 1, f"{stem}.md"
        while name in taken:
            number += 1
            name = f"{stem}-{number}.md"
        taken.add(name)
        names[title] = name
    return names


def write_articles(folder: Path) -> Path:
    """Write the articles and their attribution into the collection's folder; return the folder of the articles.

    Files that are there already and right are left alone, so this is quick the second time; one that was cut short is
    made good. Raises UserError as artifacts.fetch does.
    """
    with (artifacts.fetch(ARTIFACT) / "dev.jsonl").open(encoding="utf-8") as lines:
        found = articles(lines)
    names = file_names(found)
    place = folder / "articles"
    place.mkdir(parents=True, exist_ok=True)
    for title, paragraphs in found.items():
        path, text = place / names[title], markdown(title, paragraphs)
        if not path.exists() or path.read_bytes() != text.encode():
            path.write_bytes(text.encode())
    rows = (
        f"| {names[title]} | https://en.wikipedia.org/wiki/{quote(title.replace(' ', '_'))} |\n"
        for title in sorted(found, key=names.__getitem__)
    )
    atomic_write(folder / "ATTRIBUTION.md", NOTICE.format(source=catalog.find(ARTIFACT).source) + "".join(rows))
    return place


def ingest_demo(folder: Path, encoder: TextEncoder, on_progress: OnProgress = lambda *_: None) -> Report:
    """Write the articles and bring their collection up to date. Raises UserError as `ingest` does."""
    return ingest([write_articles(folder)], folder, encoder, on_progress)
