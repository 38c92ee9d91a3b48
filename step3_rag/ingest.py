"""Bring a collection up to date with files and folders: read, cut, embed, store, index.

    python -m step3_rag ingest ~/notes ~/papers/rag.pdf

Incremental: a file whose bytes are unchanged is skipped, a changed one is replaced (passages whose text stayed are not
embedded again), one that is gone is forgotten. Only the paths that are named are looked at; the rest of the collection
stays. Safe to interrupt: files are committed together with their vectors, a window at a time, and the indexes are
swapped in whole, so the next run goes on where this one was killed. Safe to start twice: the second run waits.
"""

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared.config import settings
from shared.errors import UserError
from shared.terminal import console, say
from step3_rag.chunks import RECIPE, passages_of
from step3_rag.documents import Remark, find_files, parse, read_bytes, require_some
from step3_rag.encoder import TextEncoder
from step3_rag.formats import UnreadableError
from step3_rag.index import publish
from step3_rag.passages import Passage
from step3_rag.store import Reading, Store

# Passages embedded and committed together: enough for batches of equal length, few enough that a kill costs seconds.
WINDOW = 1024

OnProgress = Callable[[str, int, int], None]  # (what is being done, done, in all); files count in bytes


@dataclass
class Report:
    """What one run did. files count sources; embedded counts vectors computed; seconds are wall time."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    embedded: int = 0
    passages: int = 0
    seconds: float = 0.0
    remarks: list[Remark] = field(default_factory=list)


@dataclass(frozen=True)
class _Draft:
    """A source that was read and cut, not yet embedded."""

    path: str
    digest: str
    text: str
    passages: list[Passage]
    bytes: int


def collection_folder(name: str = "default") -> Path:
    """Return where a collection is kept. Raises UserError for a name that is no plain folder name."""
    if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|\0'):
        raise UserError(f"--collection {name!r}: use letters, digits, dots and dashes")
    return settings().llm_roadmap_home.expanduser() / "step3" / name


def ingest(
    paths: Sequence[Path], folder: Path, encoder: TextEncoder, on_progress: OnProgress = lambda *_: None
) -> Report:
    """Bring the collection in `folder` up to date with `paths`, and its indexes with it.

    Problems with single files are remarks in the report. Raises UserError when a path does not exist and never did,
    when the collection was embedded with another model, when the disk is full, when the Chroma server is gone.
    """
    started = time.perf_counter()
    report = Report()
    with _locked(folder):
        store = Store(folder, encoder=encoder.name)
        try:
            _update(paths, store, encoder, report, on_progress)
            publish(store, folder, on_progress)
            report.passages = store.count()
        except sqlite3.OperationalError as error:
            raise UserError(
                f"cannot write {store.path} ({error}); free some space and run the same command again", exit_code=1
            ) from None
        finally:
            store.close()
    report.seconds = time.perf_counter() - started
    return report


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the collection's lock; the kernel frees it when its holder dies."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "ingest.lock")
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        say("another ingest into this collection is running; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _update(paths: Sequence[Path], store: Store, encoder: TextEncoder, report: Report, on_progress: OnProgress) -> None:
    """Bring the store up to date, a window at a time."""
    known = store.digests()
    found = find_files(paths)
    require_some(found, list(known))
    report.remarks += found.remarks
    gone = {path for path in known if found.covers(path)}

    sizes = [_size(path) for path in found.files]
    done, total = 0, sum(sizes)
    window: list[_Draft] = []

    def embedding(at: int) -> None:
        on_progress("embedding", at, total)

    for path, size in zip(found.files, sizes, strict=True):
        on_progress("reading", done, total)
        try:
            draft = _draft(path, known.get(str(path)), encoder, report)
            gone.discard(str(path))
        except OSError as error:  # a lock, a lost network drive: what was indexed is still the best there is
            report.remarks.append(Remark(str(path), f"cannot be read ({error.strerror or error})"))
            gone.discard(str(path))
            draft = None
        except UnreadableError as error:
            report.remarks.append(Remark(str(path), str(error)))
            draft = None
        if draft:
            window.append(draft)
            report.changed += draft.path in known
            report.added += draft.path not in known
        else:
            done += size
        if sum(len(draft.passages) for draft in window) >= WINDOW:
            done = _commit(window, store, encoder, report, embedding, done)
            window = []
    done = _commit(window, store, encoder, report, embedding, done)
    if gone:
        store.write(removed=sorted(gone))
        report.removed = len(gone)
    on_progress("reading", total, total)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _draft(path: Path, digest_before: str | None, encoder: TextEncoder, report: Report) -> _Draft | None:
    """Read and cut one file; None when it is unchanged."""
    data = read_bytes(path)
    digest = hashlib.sha256(f"{RECIPE} {encoder.max_tokens} ".encode() + data).hexdigest()
    if digest == digest_before:
        report.unchanged += 1
        return None
    document = parse(path, data)
    report.remarks += [Remark(str(path), remark) for remark in document.remarks]
    return _Draft(str(path), digest, document.text, passages_of(str(path), document, encoder), len(data))


def _commit(
    window: list[_Draft],
    store: Store,
    encoder: TextEncoder,
    report: Report,
    on_progress: Callable[[int], None],
    done: int,
) -> int:
    """Embed what is new in a window and store it in one transaction; return the bytes done with it."""
    if not window:
        return done
    passages = {passage.id: passage for draft in window for passage in draft.passages}
    vectors = store.vectors(list(passages))
    new = [name for name in passages if name not in vectors]
    size = sum(draft.bytes for draft in window)
    rows = encoder.encode(
        [passages[name].indexed_text for name in new], lambda n, of: on_progress(done + size * n // max(of, 1))
    )
    vectors.update(zip(new, rows, strict=True))
    report.embedded += len(new)
    store.write(
        [
            Reading(
                draft.path,
                draft.digest,
                draft.text,
                draft.passages,
                np.array([vectors[p.id] for p in draft.passages]).reshape(-1, encoder.dimensions),
            )
            for draft in window
        ]
    )
    return done + size


@contextmanager
def progress_bar() -> Iterator[OnProgress]:
    """Yield an on_progress that draws a bar on stderr, or draws nothing where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<12}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    err = console(stderr=True)
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("reading", total=None)

        def show(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total or 1)

        yield show
