"""A separate process that ingests with the fake encoder, and dies when told: test_ingest.py's victim.

    python ingest_child.py COLLECTION_FOLDER DOCUMENTS [WHAT NTH]

WHAT is a stage of the progress ("embedding", "vector index", "word index") or "commit", the middle of a transaction;
at its NTH report the process kills itself with SIGKILL. Without it, it runs to the end.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from fake_encoder import FakeEncoder

from step3_rag import index, store
from step3_rag.ingest import ingest

ingest.__globals__["WINDOW"] = 32
index.BATCH = 40


def main(folder: Path, documents: Path, what: str, nth: int) -> None:
    seen = 0

    def count(event: str) -> None:
        nonlocal seen
        seen += event == what
        if seen >= nth > 0:
            os.kill(os.getpid(), signal.SIGKILL)

    class CountingJson:
        loads = staticmethod(json.loads)

        @staticmethod
        def dumps(value: object) -> str:
            count("commit")
            return json.dumps(value)

    store.json = CountingJson  # type: ignore[assignment]
    print("ready", flush=True)
    report = ingest([documents], folder, FakeEncoder(), lambda event, done, total: count(event))
    print(report.passages, flush=True)


if __name__ == "__main__":
    folder, documents, what, nth = [*sys.argv[1:], "", "0"][:4] if len(sys.argv) < 5 else sys.argv[1:]
    main(Path(folder), Path(documents), what, int(nth))
