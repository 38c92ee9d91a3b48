"""The log after kill -9, and with other processes beside it: what was told is stored, once.

python -m pytest tests/step2/test_log_processes.py
"""

import contextlib
import multiprocessing
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from log_world import ANSWER, FIRST, LAST, QUESTION, events, record

from step2_tool_calling.log import Log

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

# Forked, because starting an interpreter ten times takes twenty seconds.
forked = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")


def write(path: Path, conversations: int, said: "Connection") -> None:
    """In a child: record conversations, saying the number of the conversation after each event that was stored."""
    with Log(path) as log:
        for _ in range(conversations):
            recorder = log.conversation()
            for event in events():
                recorder(event)
                said.send(recorder.id)


def start_writer(path: Path, conversations: int) -> "tuple[ForkProcess, Connection]":
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=write, args=(path, conversations, sender))
    child.start()
    sender.close()
    return child, receiver


def received(receiver: "Connection") -> Iterator[int]:
    with contextlib.suppress(EOFError):
        while True:
            yield receiver.recv()


@forked
def test_kill_9_leaves_every_completed_event(path: Path) -> None:
    chance = random.Random(5)
    for _ in range(10):
        child, receiver = start_writer(path, 100_000)
        first = receiver.recv()
        time.sleep(chance.uniform(0.0, 0.05))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        said = [first, *received(receiver)]
        last = said[-1]
        told = said.count(last)  # events of the last conversation that are known to be stored

        with Log(path) as log:
            assert log.list(1)[0].id in (last, last + 1)
            for number in range(first, last):
                assert log.read(number).ending == "answer"
            read = log.read(last)
            assert read.messages == QUESTION
            # events(): 1 started, 2 text, 3 turn, 4 and 5 calls begin, 6 and 7 they end, 8 the last turn, 9 the end
            assert len(read.turns) >= (told >= 3) + (told >= 8)
            assert sum(len(turn.results) for turn in read.turns) >= (told >= 6) + (told >= 7)
            assert told < 9 or read.ending == "answer"
            assert [turn.turn for turn in read.turns] == [FIRST, LAST][: len(read.turns)]
            assert all(turn.complete for turn in read.turns[:-1])
            with log.transaction() as db:
                assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
                assert db.execute("PRAGMA foreign_key_check").fetchall() == []


@forked
def test_four_processes_open_a_new_file_and_write_at_once(tmp_path: Path) -> None:
    for attempt in range(5):  # they race for creating the tables once per file
        path = tmp_path / f"{attempt}.db"
        writers = [start_writer(path, 5) for _ in range(4)]
        said = [number for _, receiver in writers for number in received(receiver)]
        for child, _ in writers:
            child.join()
            assert child.exitcode == 0
        assert sorted(set(said)) == list(range(1, 21))
        with Log(path) as log:
            for number in range(1, 21):
                read = log.read(number)
                assert (read.ending, read.usage) == ("answer", ANSWER.usage)
                assert [turn.turn for turn in read.turns] == [FIRST, LAST]


def test_reading_while_another_process_is_in_a_transaction(log: Log, path: Path) -> None:
    record(log, events())
    with Log(path) as other, other.transaction():
        assert [summary.id for summary in log.list()] == [1]
