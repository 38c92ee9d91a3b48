"""Small folders of documents to ingest, and everything that a collection holds afterwards, to compare two of them."""

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_encoder import FakeEncoder

from shared.config import settings
from step3_rag import index as index_module
from step3_rag.index import Index
from step3_rag.ingest import Report, ingest
from step3_rag.retrieval import search

WORDS = ("amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "harbor", "indigo", "kelp", "onyx", "pine")


def use_server(patch: pytest.MonkeyPatch, url: str | None) -> None:
    """Set CHROMA_URL, or unset it, and have the settings read again."""
    patch.setenv("CHROMA_URL", url) if url else patch.delenv("CHROMA_URL")
    settings.cache_clear()


def write_files(folder: Path, files: int, sections: int) -> None:
    folder.mkdir(exist_ok=True)
    chance = random.Random(0)
    for n in range(files):
        parts = [f"## Part {m}\n\n{' '.join(chance.choices(WORDS, k=12))} number{n} piece{m}." for m in range(sections)]
        (folder / f"f{n:03}.md").write_text(f"# File {n}\n\n" + "\n\n".join(parts) + "\n")


def make_pdf(pages: Sequence[str], bookmarks: Sequence[tuple[str, int]] = (), password: str = "") -> bytes:
    """A PDF with these texts, written by hand where pypdf has no words for it."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    entries = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font = DictionaryObject({NameObject(key): NameObject(value) for key, value in entries.items()})
    for content in pages:
        page = writer.add_blank_page(300, 300)
        stream = DecodedStreamObject()
        lines = "".join(f"({line}) Tj 0 -20 Td " for line in content.split("\n"))
        stream.set_data(f"BT /F1 12 Tf 20 250 Td {lines} ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
    for title, number in bookmarks:
        writer.add_outline_item(title, number)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def run(folder: Path, *paths: Path, encoder: FakeEncoder | None = None) -> Report:
    return ingest(paths, folder, encoder or FakeEncoder())


def contents(folder: Path) -> dict[str, Any]:
    """Everything a collection holds: its sources, its passages with vectors, and what both indexes answer."""
    index = Index(folder)
    try:
        store = index.store
        ids = store.ids()
        vectors = store.vectors(ids)
        queries = ["amber basalt", "number3 piece1", "fjord onyx pine number7"]
        encoder = FakeEncoder()
        assert sorted(index_module._ids_in(index._collection)) == sorted(ids)
        stored = index._collection.get(ids=ids[:50], include=["embeddings"])
        for name, vector in zip(stored["ids"], stored["embeddings"], strict=True):
            assert float(vector @ vectors[name]) == pytest.approx(1, abs=1e-3)

        def found(query: str, retriever: str) -> list[tuple[str, float]]:
            hits = search(query, 5, index, encoder, retrievers=[retriever])
            return [(hit.passage.id, pytest.approx(hit.score, abs=1e-6)) for hit in hits]

        return {
            "sources": {path: (digest, store.source_text(path)) for path, digest in store.digests().items()},
            "passages": store.passages(ids),
            "vectors": {name: vector.tobytes() for name, vector in vectors.items()},
            "by words": [found(query, "lexical") for query in queries],
            "by vectors": [sorted(found(query, "dense"), key=lambda pair: pair[0]) for query in queries],
        }
    finally:
        index.close()
