"""Secrets are masked in every text and in every field of the log, and what is no secret stays.

python -m pytest tests/step2/test_redaction.py
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from log_world import record

from step2_tool_calling.conversation import (
    Call,
    CallDone,
    CallStarted,
    Event,
    Finished,
    Result,
    Started,
    Turn,
    TurnDone,
    Usage,
)
from step2_tool_calling.log import Log
from step2_tool_calling.redaction import environment_secrets, redact


def stored(path: Path) -> bytes:
    """Everything on the disk, write-ahead log included."""
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


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
