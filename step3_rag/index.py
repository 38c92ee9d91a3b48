"""The two indexes over a collection, made from its store: Chroma for vectors, BM25 for words.

Each version of the indexes is a folder, `generation-N`, made beside the old one under a temporary name and renamed
when it is complete. So a reader never opens one that is being written, a kill -9 leaves only rubbish that the next run
sweeps, and a page that is open in the browser moves on to the new one at its next question:

    ~/.cache/llm-engineer-roadmap/step3/default/collection.db     the truth (store.py)
    ~/.cache/llm-engineer-roadmap/step3/default/generation-7/     chroma/, bm25/, vectors.json

Chroma's part is copied from the generation before and only the difference is applied: copying 100,000 vectors takes
a second, building their graph minutes. With CHROMA_URL the vectors live on that server instead, which is one process
and needs no generations: there the difference is applied in place.
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from shared.config import settings
from shared.errors import UserError
from shared.files import atomic_directory
from shared.terminal import say
from step3_rag.lexical import LexicalIndex, build_lexical_index
from step3_rag.store import Store

# Chroma writes its graph to disk after this many changes, in one go at the end of each call of ours: small, so that
# nothing waits in its log to be applied anew by every process that opens the folder.
SYNC_THRESHOLD = 10
BATCH = 5_000  # vectors per call; Chroma 1.5 takes 5,461 at most
PAGE = 10_000  # ids per answer of a server
# Deleted vectors stay in the graph as dead ends. Above this share of dead ones it is built anew.
MOST_DEAD = 0.2

OnProgress = Callable[[str, int, int], None]  # (what is being made, done, in all)


def chroma_url() -> str | None:
    """The Chroma server to use, from CHROMA_URL; None: Chroma in this process."""
    return (settings().chroma_url or "").strip().rstrip("/") or None


def latest_generation(folder: Path) -> tuple[int, Path] | None:
    """Return (version, folder) of the newest complete indexes."""
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := re.fullmatch(r"generation-(\d+)", path.name))]
    return max(found, default=None)


@dataclass(frozen=True)
class _Vectors:
    """Where a generation's vectors are: on a server (url) or in its own folder (None), under which collection name.

    dead: vectors deleted since the graph was built.
    """

    url: str | None
    collection: str
    dead: int = 0

    def same_place(self, other: "_Vectors") -> bool:
        return (self.url, self.collection) == (other.url, other.collection)


def publish(store: Store, folder: Path, on_progress: OnProgress) -> None:
    """Bring the indexes up to the store. The caller holds the collection's lock. Does nothing when they are.

    Raises UserError when the Chroma server does not answer.
    """
    # One Chroma collection per store: two people's `default` on one server must not delete each other's vectors.
    place = _Vectors(chroma_url(), f"step3-{store.identity}")
    latest = latest_generation(folder)
    before = _read(latest[1]) if latest else None
    if latest and before and latest[0] == store.version:
        if before.same_place(place) and _complete(place, store):
            return
        store.new_version()  # right once, but the vectors are elsewhere, or gone from there
    with atomic_directory(folder / f"generation-{store.version}") as new:
        if place.url is not None:
            with _connect(place, None) as collection:
                _apply_difference(collection, store, on_progress)
        elif latest and before and before.same_place(place):
            place = _from_copy(before, latest[1] / "chroma", new / "chroma", store, on_progress)
        else:
            _anew(place, new / "chroma", store, on_progress)
        (new / "vectors.json").write_text(json.dumps(asdict(place)))
        on_progress("word index", 0, 1)
        build_lexical_index(new / "bm25", store.ids(), (passage.indexed_text for passage in store.all_passages()))
        on_progress("word index", 1, 1)
    for path in folder.glob("generation-*"):
        if path.name != f"generation-{store.version}":
            shutil.rmtree(path, ignore_errors=True)  # whoever was reading it moves on (Index.dense)


def _anew(place: _Vectors, new: Path, store: Store, on_progress: OnProgress) -> None:
    with _connect(place, new) as collection:
        _apply_difference(collection, store, on_progress)


def _from_copy(before: _Vectors, old: Path, new: Path, store: Store, on_progress: OnProgress) -> _Vectors:
    """Make `new` from `old` and the difference; anew where too much is dead, or Chroma cannot read its own files."""
    # Under a path of its own: where Chroma has failed once, it fails for the rest of the process.
    copy = new.with_name("copy")
    try:
        shutil.copytree(old, copy)
        with _connect(before, copy) as collection:
            dead = before.dead + len(set(_ids_in(collection)).difference(store.ids()))
            usable = dead <= MOST_DEAD * store.count()
            if usable:
                _apply_difference(collection, store, on_progress)
    except Exception as error:  # Chroma raises anything from OSError to errors of its own
        say(f"the vector index cannot be continued ({error}); building it anew")
        usable = False
    if usable:
        os.rename(copy, new)
        return replace(before, dead=dead)
    shutil.rmtree(copy, ignore_errors=True)
    _anew(before, new, store, on_progress)
    return replace(before, dead=0)


def _apply_difference(collection: Any, store: Store, on_progress: OnProgress) -> None:
    """Delete from Chroma what the store does not have and add what Chroma does not have; ids say it all."""
    present, wanted = set(_ids_in(collection)), store.ids()
    gone = sorted(present.difference(wanted))
    missing = [name for name in wanted if name not in present]
    for start in range(0, len(gone), BATCH):
        collection.delete(ids=gone[start : start + BATCH])
    for start in range(0, len(missing), BATCH):
        on_progress("vector index", start, len(missing))
        vectors = store.vectors(missing[start : start + BATCH])
        collection.upsert(ids=list(vectors), embeddings=np.stack(list(vectors.values())))
    on_progress("vector index", len(missing), len(missing))


class Index:
    """The newest indexes of a collection, and its store. Safe to share between threads; follows new generations."""

    def __init__(self, folder: Path) -> None:
        """Open them. Raises UserError when there are none, or CHROMA_URL is not what they were made with."""
        self.folder = folder
        self.store = Store(folder)
        self.version = -1
        self._lock = threading.Lock()
        self._stamp = -1
        self._collection: Any = None
        self._words: LexicalIndex | None = None
        self._closers: list[Callable[[], None]] = []
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    def refresh(self) -> None:
        """Move on to a newer generation if another process (or this one) has published one."""
        stamp = self.folder.stat().st_mtime_ns  # a rename inside changes it; reading it takes microseconds
        if stamp == self._stamp:
            return
        with self._lock:
            for attempt in (1, 2):
                try:
                    self._open_latest()
                    break
                except UserError:
                    raise
                except Exception as error:  # swept away while it was being opened: then there is a newer one
                    if attempt == 2:
                        raise UserError(
                            f"the indexes of {self.folder} cannot be read ({error}); delete its generation-* folders "
                            "and run the same ingest again: nothing will be embedded anew"
                        ) from None
            self._stamp = stamp

    def _open_latest(self) -> None:
        latest = latest_generation(self.folder)
        if latest is None:
            raise UserError(f"the indexes of {self.folder} are not complete; run the same ingest again")
        version, path = latest
        if version == self.version:
            return
        place = _read(path)
        if place.url != chroma_url():
            where = f"on the Chroma server {place.url}" if place.url else "in its own folder, not on CHROMA_URL"
            raise UserError(f"the vectors of {self.folder} are {where}; set CHROMA_URL accordingly, or ingest again")
        words = LexicalIndex(path / "bm25")
        if not place.url and not (path / "chroma" / "chroma.sqlite3").exists():
            raise FileNotFoundError(f"{path / 'chroma'} is gone")  # Chroma would make an empty one
        collection, close = _open_chroma(place, path / "chroma", create=False)
        vector = self.store.any_vector()
        if vector is not None:  # reads the graph into memory now, not at the first question
            collection.query(query_embeddings=vector[None], n_results=1, include=["distances"])
        self._collection, self._words, self.version = collection, words, version
        self._closers.append(close)
        if len(self._closers) > 2:  # not the one just left: a question in another thread may be using it
            self._closers.pop(0)()

    def behind(self) -> bool:
        """Whether passages were stored that these indexes do not know yet: an ingest was cut short."""
        return self.version < self.store.version

    def dense(self, vector: NDArray[np.float32], depth: int) -> list[tuple[str, float]]:
        """Return (id, cosine) of about the `depth` nearest passages, nearest first; the graph is approximate.

        Raises UserError when the Chroma server has gone.
        """
        for attempt in (1, 2):
            try:
                answer = self._collection.query(query_embeddings=vector[None], n_results=depth, include=["distances"])
                break
            except Exception as error:  # Chroma opens files late: this generation may just have been swept away
                if attempt == 1:
                    self.refresh()
                elif url := chroma_url():
                    raise _server_error(url, error) from None
                else:
                    raise
        return [(name, 1 - distance) for name, distance in zip(answer["ids"][0], answer["distances"][0], strict=True)]

    def lexical(self, query: str, depth: int) -> list[tuple[str, float]]:
        """Return (id, BM25 score) of at most `depth` passages, best first."""
        assert self._words is not None
        return self._words.search(query, depth)

    def close(self) -> None:
        """Give the files back."""
        for close in self._closers:
            close()
        self._closers.clear()
        self.store.close()


def _read(generation: Path) -> _Vectors:
    return _Vectors(**json.loads((generation / "vectors.json").read_text()))


def _complete(place: _Vectors, store: Store) -> bool:
    """Whether a server still has every vector: unlike our folder, it can be emptied without our knowing."""
    if place.url is None:
        return True
    with _connect(place, None) as collection:
        return bool(collection.count() == store.count())


def _ids_in(collection: Any) -> Iterator[str]:
    offset = 0
    while page := collection.get(include=[], limit=PAGE, offset=offset)["ids"]:
        yield from page
        offset += len(page)


@contextmanager
def _connect(place: _Vectors, folder: Path | None) -> Iterator[Any]:
    """Open a collection to write to; it is made if need be."""
    collection, close = _open_chroma(place, folder, create=True)
    try:
        yield collection
    except Exception as error:
        if place.url:
            raise _server_error(place.url, error) from None
        raise
    finally:
        close()


def _open_chroma(place: _Vectors, folder: Path | None, *, create: bool) -> tuple[Any, Callable[[], None]]:
    """Return (Chroma collection, how to close it). folder: where it is, if not on a server."""
    import chromadb
    from chromadb.config import Settings

    client: Any
    graph: dict[str, Any] = {"space": "cosine"}
    settings = Settings(anonymized_telemetry=False)
    if place.url:
        try:
            parts = urlsplit(place.url if "//" in place.url else f"http://{place.url}")
            secure = parts.scheme == "https"
            port = parts.port or (443 if secure else 8000)
            client = chromadb.HttpClient(parts.hostname or "localhost", port, ssl=secure, settings=settings)
        except Exception as error:  # a bad port, nobody there, or somebody who is not Chroma
            raise _server_error(place.url, error) from None
    else:
        client = chromadb.PersistentClient(str(folder), settings=settings)
        graph["sync_threshold"] = SYNC_THRESHOLD
    # embedding_function=None: every vector is ours. Chroma's own would download a model.
    if create:
        collection = client.get_or_create_collection(
            place.collection, embedding_function=None, configuration={"hnsw": graph}
        )
    else:
        collection = client.get_collection(place.collection, embedding_function=None)
    return collection, client.close


def _server_error(url: str, error: Exception) -> UserError:
    return UserError(f"CHROMA_URL={url}: {error}; is the server running? (chroma run)", exit_code=1)
