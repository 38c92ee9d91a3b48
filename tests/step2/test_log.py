"""The audit log: what is written comes back, after kill -9 and beside other writers too, and never with a secret."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shared.config import settings
from shared.errors import UserError
from step2_tool_calling.conversation import (
    Call,
    CallDone,
    CallStarted,
    Event,
    Finished,
    Message,
    Result,
    Started,
    TextDelta,
    Turn,
    TurnDone,
    Usage,
)
from step2_tool_calling.log import MIGRATIONS, Log
from step2_tool_calling.redaction import environment_secrets, redact

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

LISBON = Call("call_1", "get_weather", '{"city": "Lisbon"}')
OSLO = Call("call_2", "get_weather", '{"city": "Oslo"}')
FIRST = Turn("Let me look.", (LISBON, OSLO), Usage(900, 512, 40, 1), 0.8, 0.1, "tool_calls")
LAST = Turn("It is warmer in Lisbon.", (), Usage(1000, 900, 8, 1), 0.4, 0.2)
QUESTION: list[Message] = [
    {"role": "system", "content": "You call tools."},
    {"role": "user", "content": "Is it warmer in Lisbon or Oslo?"},
]
ANSWER = Finished("It is warmer in Lisbon.", "answer", Usage(1900, 1412, 48, 2), 1.5, 0.0)


def started(messages: list[Message] = QUESTION) -> Started:
    return Started(messages, "smollm2-135m", "http://127.0.0.1:8000/v1", "native", "plain@1", ["get_weather"])


def events() -> list[Event]:
    """Two calls in parallel, the second one done first, and an answer."""
    return [
        started(),
        TextDelta("Let me look."),
        TurnDone(1, FIRST),
        CallStarted(1, LISBON),
        CallStarted(1, OSLO),
        CallDone(1, Result(OSLO, "timeout", "no answer within 20 s", 20.0)),
        CallDone(1, Result(LISBON, "ok", '{"temperature": 18.3}', 0.2)),
        TurnDone(2, LAST),
        ANSWER,
    ]


def record(log: Log, told: list[Event]) -> int:
    recorder = log.conversation()
    for event in told:
        recorder(event)
    assert recorder.id is not None
    return recorder.id


def stored(path: Path) -> bytes:
    """Everything on the disk, write-ahead log included."""
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    with Log(path) as opened:
        yield opened


# -- writing and reading -----------------------------------------------------------------------------------------------


def test_a_conversation_comes_back_as_it_was(log: Log) -> None:
    read = log.read(record(log, events()))
    assert read.messages == QUESTION
    assert (read.model, read.strategy, read.prompt, read.tools) == (
        "smollm2-135m",
        "native",
        "plain@1",
        ["get_weather"],
    )
    first, last = read.turns
    assert (first.step, first.turn, last.step, last.turn) == (1, FIRST, 2, LAST)
    # In the order of the calls, which is the order of the tool messages, not in the order they finished.
    assert first.results == [
        Result(LISBON, "ok", '{"temperature": 18.3}', 0.2),
        Result(OSLO, "timeout", "no answer within 20 s", 20.0),
    ]
    assert first.complete
    assert last.complete
    assert (read.ending, read.answer, read.error, read.cost, read.seconds) == ("answer", ANSWER.answer, "", 0.0, 1.5)
    assert read.usage == ANSWER.usage


def test_the_list_has_the_newest_first(log: Log) -> None:
    for question in ("one", "two", "three"):
        record(log, [started([{"role": "user", "content": question}]), *events()[1:]])
    newest, older = log.list(2)
    assert (newest.id, newest.question, older.id, older.question) == (3, "three", 2, "two")
    assert (newest.calls, newest.usage.total, newest.cost, newest.ending) == (2, 1948, 0.0, "answer")
    assert (time.time() - newest.started_at.timestamp()) < 60


def test_the_question_of_a_chat_is_the_last_one(log: Log) -> None:
    chat = [*QUESTION, LAST.as_message(), {"role": "user", "content": "And in Rome?"}]
    record(log, [started(chat)])
    assert log.list()[0].question == "And in Rome?"


def test_an_unfinished_conversation_says_what_began_and_what_did_not(log: Log) -> None:
    third = Call("call_3", "get_weather", '{"city": "Rome"}')
    turn = Turn("", (LISBON, OSLO, third), Usage(100, 0, 10, 1), 0.5)
    told: list[Event] = [started(), TurnDone(1, turn), CallStarted(1, LISBON), CallStarted(1, OSLO)]
    read = log.read(record(log, [*told, CallDone(1, Result(OSLO, "ok", "4", 0.1))]))
    assert (read.ending, read.cost, read.usage, read.seconds) == (None, None, turn.usage, 0.5)
    (only,) = read.turns
    assert not only.complete
    assert [result.call for result in only.results] == [OSLO]
    assert only.running == [LISBON]
    assert (log.list()[0].ending, log.list()[0].usage) == (None, turn.usage)


def test_refused_and_cancelled_calls(log: Log) -> None:
    told: list[Event] = [
        started(),
        TurnDone(1, FIRST),
        CallDone(1, Result(LISBON, "denied", "the user did not allow this call")),  # never began
        CallStarted(1, OSLO),
        CallDone(1, Result(OSLO, "cancelled", "cancelled", 0.3)),
        Finished("Let me look.", "cancelled", FIRST.usage, 1.0, 0.0),
    ]
    read = log.read(record(log, told))
    assert [result.status for result in read.turns[0].results] == ["denied", "cancelled"]
    assert read.ending == "cancelled"


def test_two_equal_calls_with_the_same_id_keep_a_result_each(log: Log) -> None:
    same = Call("", "roll", "{}")
    told: list[Event] = [started(), TurnDone(1, Turn("", (same, same))), CallStarted(1, same), CallStarted(1, same)]
    told += [CallDone(1, Result(same, "ok", "3")), CallDone(1, Result(same, "ok", "5"))]
    assert [result.output for result in log.read(record(log, told)).turns[0].results] == ["3", "5"]


def test_a_second_question_is_a_second_conversation(log: Log) -> None:
    recorder = log.conversation()
    for event in [*events(), *events()]:
        recorder(event)
    assert [summary.id for summary in log.list()] == [2, 1]
    assert log.read(1).turns == log.read(2).turns


def test_unicode_line_ends_nul_and_half_characters(log: Log, path: Path) -> None:
    text = 'Übergrößen 你好 🙂 "quoted" \\ \r\n\t \x00 \x1b[31m end'
    call = Call("c", "écho", json.dumps({"t": text}))
    told: list[Event] = [
        started([{"role": "user", "content": text}]),
        TurnDone(1, Turn(text + "\ud83d", (call,))),  # a stream cut in the middle of an emoji
        CallDone(1, Result(call, "ok", text)),
    ]
    read = log.read(record(log, told))
    assert read.messages[0]["content"] == text
    assert read.turns[0].turn.content == text + "\\ud83d"
    assert read.turns[0].results == [Result(call, "ok", text)]
    assert read.turns[0].turn.calls[0].arguments() == {"t": text}


def test_an_output_of_twenty_megabytes(log: Log) -> None:
    output = "0123456789abcdef" * (20 * 2**16)
    told: list[Event] = [started(), TurnDone(1, FIRST), CallDone(1, Result(LISBON, "ok", output))]
    assert log.read(record(log, told)).turns[0].results[0].output == output


# -- the file ----------------------------------------------------------------------------------------------------------


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


# -- death and company -------------------------------------------------------------------------------------------------

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


# -- secrets -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Set variables through this; they are read at the first text."""
    environment_secrets.cache_clear()
    yield monkeypatch
    environment_secrets.cache_clear()


# Put together here, or scanners of repositories would take them for real ones.
KNOWN = [
    "sk-" + "abcDEF0123456789abcd",
    "sk-" + "ant-api03-aB3_x-9zaB3_x-9zaB3",
    "ghp" + "_0123456789abcdefghijABCDEFGHIJ012345",
    "github" + "_pat_11ABCDEFG0123456789_abcdefghij",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "hf" + "_abcdefghijKLMNOPqrst0123456789",
    "AIza" + "SyA0123456789abcdefghijklmnopqrstuv",
    "xoxb" + "-123456789012-abcdefABCDEF",
    "eyJ" + "hbGciOiJIUzI1NiJ9." + "eyJ" + "zdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
]


@pytest.mark.parametrize("key", KNOWN)
@pytest.mark.parametrize("text", ["{}", "use {} please", '{{"key": "{}"}}', "line\\n{}", "https://h.example/?k={}&x=1"])
def test_secrets_of_known_form_are_masked_and_nothing_else(key: str, text: str) -> None:
    assert redact(text.format(key)) == text.format("[redacted]")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer [redacted]"),
        ("authorization: Basic dXNlcjpwYXNzd29yZA==", "authorization: Basic [redacted]"),
        ('{"Authorization": "token abcdef123456"}', '{"Authorization": "token [redacted]"}'),
        (r'"{\"Authorization\": \"Bearer abcdef123456\"}"', r'"{\"Authorization\": \"Bearer [redacted]\"}"'),
        ("curl -H 'Authorization: abcdef123456'", "curl -H 'Authorization: [redacted]'"),
        ("got bearer abcdef1234567890 back", "got bearer [redacted] back"),
        ("https://ann:hunter2@db.example/x", "https://ann:[redacted]@db.example/x"),
    ],
)
def test_secrets_in_headers_and_urls(text: str, masked: str) -> None:
    assert redact(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "the task-force met; sk-learn is a library; disk-0123456789-abcdefghij",
        "hf_hub_download_with_a_long_name and ghp_short",
        '{"authorization": null, "bearer": true}',
        "the bearer of this letter, through Asia, at 10:30 on https://example.org/a:b/c",
        "mail ann@example.org; see https://example.org:8080/path@x",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_the_environment_in_every_spelling(environment: pytest.MonkeyPatch) -> None:
    secret = 'pä"ss\\w+rd/ü 1'
    environment.setenv("MY_API_KEY", secret)
    environment.setenv("SOME_TOKEN", "short")
    environment.setenv("TOKENIZERS_PARALLELISM", "disabled")
    environment.setenv("PGPASSWORD", "correct horse")
    for form in (secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False), json.dumps(json.dumps(secret))):
        assert redact(f"a {form} b") in ("a [redacted] b", 'a "[redacted]" b', 'a "\\"[redacted]\\"" b')
    assert redact("?k=p%C3%A4%22ss%5Cw%2Brd%2F%C3%BC%201&n=2") == "?k=[redacted]&n=2"
    assert redact("short disabled correct horse") == "short disabled [redacted]"


def test_no_secret_reaches_the_disk_by_any_field(log: Log, path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SERVICE_SECRET", "s3cr3t-value-of-mine")
    for leak in ("s3cr3t-value-of-mine", KNOWN[0]):
        call = Call(f"id-{leak}", f"name-{leak}", json.dumps({"key": leak, leak: ["x", {"deep": leak}]}))
        nested = {"role": "assistant", "content": [{"text": leak}], "tool_calls": [call.as_message()], leak: 1}
        told: list[Event] = [
            Started([{"role": "user", "content": leak}, nested], leak, f"http://h/?k={leak}", leak, leak, [leak]),
            TurnDone(1, Turn(f"I use {leak}", (call,), finish=leak)),
            CallStarted(1, call),
            CallDone(1, Result(call, "error", f"401 for {leak}")),
            Finished(f"It is {leak}", "failed", Usage(), 1.0, None, error=f"bad key {leak}"),
        ]
        read = log.read(record(log, told))
        assert leak.encode() not in stored(path)
        assert read.messages[0]["content"] == "[redacted]"
        assert read.turns[0].turn.calls[0].arguments() == {
            "key": "[redacted]",
            "[redacted]": ["x", {"deep": "[redacted]"}],
        }
        assert read.turns[0].complete
