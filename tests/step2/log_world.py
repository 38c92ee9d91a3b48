"""A conversation with two calls in parallel, as events, for the tests of the log."""

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
from step2_tool_calling.log import Log

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
