"""The audit log: what is written comes back as it was.

python -m pytest tests/step2/test_log.py
"""

import json
import time
from pathlib import Path

from log_world import ANSWER, FIRST, LAST, LISBON, OSLO, QUESTION, events, record, started

from step2_tool_calling.conversation import Call, CallDone, CallStarted, Event, Finished, Result, Turn, TurnDone, Usage
from step2_tool_calling.log import Log


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
