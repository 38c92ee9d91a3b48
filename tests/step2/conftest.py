"""Calling step 2's program from a test, against a scripted endpoint, and a log without the program."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shared.config import settings
from step2_tool_calling.cli import main
from step2_tool_calling.log import Conversation, Log
from step2_tool_calling.redaction import environment_secrets
from tests.shared.fake_endpoint import FakeEndpoint, Reply, fake_endpoint

ROOT = Path(__file__).parents[2]
TOOLS = '''
import asyncio
from pathlib import Path

from step2_tool_calling.function_tools import unsafe

DEGREES = {"Lisbon": 18.5, "Oslo": 4.5}


def get_weather(city: str) -> dict:
    """The temperature in a city, in degrees Celsius."""
    return {"city": city, "temperature": DEGREES[city]}


async def sleep(seconds: float) -> str:
    """Wait."""
    Path("sleeping").touch()
    await asyncio.sleep(seconds)
    return "slept"


def read_page() -> str:
    """Read a web page."""
    return Path("page.txt").read_text()


@unsafe
def send_mail(to: str) -> str:
    """Send a mail."""
    Path("sent.txt").write_text(to)
    return "sent"
'''


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home: every test has a log of its own."""
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    environment_secrets.cache_clear()
    yield tmp_path / "home"
    environment_secrets.cache_clear()


@pytest.fixture
def step2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> Any:
    """Call the program in this process (openai is imported once), in an empty directory; never with a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["step2", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        done = Done(code, *capsys.readouterr())
        assert "Traceback" not in done.err
        return done

    return run


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Callable[[Iterable[Reply]], FakeEndpoint]]:
    """Point OPENAI_BASE_URL at a fake with this script; retries of the client wait a millisecond, not half a second."""
    from openai import _base_client

    monkeypatch.setattr(_base_client, "INITIAL_RETRY_DELAY", 0.001)
    with ExitStack() as stack:

        def script(replies: Iterable[Reply]) -> FakeEndpoint:
            fake = stack.enter_context(fake_endpoint(replies))
            monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
            settings.cache_clear()
            environment_secrets.cache_clear()
            return fake

        yield script


ASK = ["ask", "Is it warmer in Lisbon or Oslo?", "--no-builtin", "--tools", "my_tools.py", "--strategy", "native"]


@pytest.fixture
def ask(step2: Any, tmp_path: Path) -> Any:
    """Ask a question with the tools above and `--strategy native`; later options win."""
    (tmp_path / "my_tools.py").write_text(TOOLS)

    def run(*options: object) -> Done:
        done: Done = step2(*ASK, *options)
        return done

    return run


@pytest.fixture
def start(ask: Any) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the same question (or other arguments) as a process, which a signal can end, and wait for a file of it."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, until: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "step2_tool_calling", *(arguments or ASK)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        deadline = time.monotonic() + 30  # imports take seconds on a busy machine
        while not until.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"{until.name} did not appear"
            time.sleep(0.02)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where `log` lies."""
    return tmp_path / "log.db"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    """An empty log of its own, not the one in `home`."""
    with Log(path) as opened:
        yield opened


@pytest.fixture
def logged(home: Path) -> Callable[[int], Conversation]:
    """Read a conversation from this test's log."""

    def read(number: int = 1) -> Conversation:
        with Log() as log:
            return log.read(number)

    return read
