"""The log's file: where it lies, who reads it, its versions, and what is said when it is damaged or no log at all.

python -m pytest tests/step2/test_log_file.py
"""

import os
import random
import sqlite3
import stat
from pathlib import Path

import pytest
from log_world import ANSWER, FIRST, LAST, events, record, started

from shared.config import settings
from shared.errors import UserError
from step2_tool_calling.conversation import TurnDone
from step2_tool_calling.log import MIGRATIONS, Log


def test_the_default_file_lies_in_the_home_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    with Log() as log:
        record(log, events())
    assert (tmp_path / "home" / "step2" / "log.db").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_only_the_owner_can_read_it(log: Log, path: Path) -> None:
    record(log, events())
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_an_unknown_number_is_answered_with_the_newest(log: Log) -> None:
    with pytest.raises(UserError, match="no conversation 7 .*; the log is empty"):
        log.read(7)
    for _ in range(7):
        record(log, [started()])
    with pytest.raises(UserError, match="no conversation 99 .*; the newest are 7, 6, 5, 4, 3$"):
        log.read(99)


def test_the_file_carries_its_version_and_a_newer_one_is_refused(log: Log, path: Path) -> None:
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        raw.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(UserError, match="newer than this program") as caught:
        Log(path)
    assert str(path) in str(caught.value)


def test_an_older_file_is_brought_up_to_date_with_its_content(
    log: Log, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(log, events())
    monkeypatch.setattr("step2_tool_calling.log.MIGRATIONS", [*MIGRATIONS, ["ALTER TABLE turns ADD COLUMN note TEXT"]])
    with Log(path) as newer:
        assert newer.read(1).answer == ANSWER.answer
        with newer.transaction() as db:
            assert db.execute("SELECT note FROM turns").fetchall()[0][0] is None
            assert db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS) + 1


def test_a_migration_that_fails_changes_nothing(log: Log, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(log, events())
    broken = [*MIGRATIONS, ["ALTER TABLE turns ADD COLUMN note TEXT", "ALTER TABLE nowhere ADD COLUMN x"]]
    with monkeypatch.context() as patch:
        patch.setattr("step2_tool_calling.log.MIGRATIONS", broken)
        with pytest.raises(UserError, match="no such table"):
            Log(path)
    with Log(path) as same:
        assert same.read(1).turns[0].turn == FIRST


@pytest.mark.parametrize("content", [b"not a database, but long enough to be taken for one" * 50, b"short"])
def test_a_file_that_is_no_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged .*: move it away") as caught:
        Log(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_file_damaged_in_the_middle(path: Path) -> None:
    with Log(path) as log:
        for _ in range(200):
            record(log, events())
    damaged = bytearray(path.read_bytes())
    damaged[4096:] = random.Random(0).randbytes(len(damaged) - 4096)
    path.write_bytes(damaged)
    with Log(path) as log, pytest.raises(UserError, match="damaged"):
        log.list()
    with Log(path) as log, pytest.raises(UserError, match="damaged"):
        record(log, events())


def test_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        Log(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        Log(tmp_path / "file" / "log.db")


def test_a_bug_is_not_blamed_on_the_file(log: Log) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        log.conversation()(TurnDone(1, LAST))  # before Started
