"""Do work in a thread and watch it: what it emits comes out of an iterator, and leaving the iterator stops the work.

Why not in the caller's own thread: LangGraph waits for a node to finish even when Ctrl-C has come, and a node may be
writing an answer for many seconds.

    python -m pytest tests/step3/test_reflection.py
"""

import queue
import threading
from collections.abc import Callable, Iterator

from step3_rag.answers import Answer, Event

Emit = Callable[[Event], None]


class _NobodyWatches(Exception):  # noqa: N818 - not an error: whoever asked has left
    pass


def watch(work: Callable[[Emit], None]) -> Iterator[Event]:
    """Yield what `work` emits, until an Answer, which it must emit last; raise what it raises.

    work: begins when the first event is asked for. Once the iterator was left, emit raises an exception that it should
    let pass; it is looked at by nobody.
    """
    events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
    left = threading.Event()

    def emit(event: Event) -> None:
        if left.is_set():
            raise _NobodyWatches
        events.put(event)

    def to_the_end() -> None:
        try:
            work(emit)
        except BaseException as error:  # whatever it is, the one who watches must hear of it
            events.put(error)

    threading.Thread(target=to_the_end, name="reflection", daemon=True).start()
    try:
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, Answer):
                return
    finally:
        left.set()
