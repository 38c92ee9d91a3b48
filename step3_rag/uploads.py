"""Files that came through the browser: kept in the collection's own folder under a clean name, then ingested.

    ~/.cache/llm-engineer-roadmap/step3/default/uploads/report.pdf

A browser's file name is a stranger's text: it may hold a path, a name that hides, letters that turn the writing
direction. What cannot be read as a document is not kept.

    python -m pytest tests/step3/test_uploads.py
"""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from shared.errors import UserError
from shared.files import atomic_write
from step3_rag.documents import MAX_BYTES, Remark
from step3_rag.encoder import TextEncoder
from step3_rag.ingest import OnProgress, Report, ingest
from step3_rag.store import Store

LONGEST_NAME = 120  # bytes; file systems take 255, and temporary names are longer than the name


def collections(root: Path, *chosen: str) -> list[str]:
    """Return the names of the collections under `root`, and those `chosen`, which may be yet to be made."""
    found = {path.parent.name for path in root.glob("*/collection.db")}
    return sorted({*chosen, *found})


def clean_name(name: str) -> str:
    """Return a name that is one plain, visible file name on every system, with the suffix it had."""
    name = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    # Category C: control characters, direction marks, unassigned and half characters.
    plain = "".join("-" if c in '<>:"|?*' or unicodedata.category(c).startswith("C") else c for c in name)
    path = Path(plain.strip(" .") or "unnamed.txt")
    suffix = path.suffix[:16]
    stem = path.stem.encode()[: LONGEST_NAME - len(suffix.encode())].decode(errors="ignore").rstrip(" .")
    return stem + suffix


def add_files(paths: Sequence[Path], folder: Path, encoder: TextEncoder, on_progress: OnProgress) -> Report:
    """Copy files into the collection and index them; a file of the same name is replaced.

    Files that cannot be read are remarks in the report and are not kept; the rest goes on. Raises UserError as ingest
    does, and when a file cannot be written.
    """
    uploads = Path(os.path.abspath(folder)) / "uploads"  # sources are known by their absolute paths
    kept: dict[str, Path] = {}
    refused: list[Remark] = []
    for path in paths:
        name = clean_name(path.name)
        while name in kept:  # two names of this batch that differ only in what was cleaned away
            name = f"{Path(name).stem}-2{Path(name).suffix}"
        if path.stat().st_size > MAX_BYTES:
            refused.append(Remark(name, f"is larger than {MAX_BYTES // 1_000_000} MB; split it"))
            continue
        kept[name] = uploads / name
        try:
            atomic_write(kept[name], path.read_bytes())
        except OSError as error:
            raise UserError(f"{name} cannot be copied to {uploads} ({error.strerror})", exit_code=1) from None
    report = ingest(list(kept.values()), folder, encoder, on_progress)
    report.remarks = refused + report.remarks
    store = Store(folder)
    try:
        indexed = store.digests()
    finally:
        store.close()
    for target in kept.values():
        if str(target) not in indexed:
            target.unlink(missing_ok=True)
    return report
