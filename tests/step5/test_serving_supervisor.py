"""An engine process that crashes, hangs, does not start, and must not outlive the service."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import Gateway, eventually, new_key
from fake_engine import MODEL

from step5_serving import engines, supervisor
from step5_serving.launch import Launch, free_port
from step5_serving.service import Options, serve_in_thread

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
ENDS = ("ends",)
PROGRAM = str(Path(__file__).with_name("fake_engine.py"))


def launch(*arguments: str) -> Launch:
    """The fake engine as a process, or one that ends at once."""
    port = free_port()
    command = [sys.executable, PROGRAM, "--port", str(port), *arguments]
    if arguments == ENDS:
        command = [sys.executable, "-S", "-c", "raise SystemExit(3)"]
    return Launch("fake", MODEL, command, {}, f"http://127.0.0.1:{port}", 4, 2.0)


@contextmanager
def supervised(home: Path, *arguments: str) -> Iterator[Gateway]:
    """A gateway that runs its engine itself."""
    key = new_key()
    with (
        serve_in_thread(Options(port=0, launches=[launch(*arguments)])) as (url, parts),
        httpx.Client(base_url=url, timeout=30, verify=False, trust_env=False) as http,
    ):
        yield Gateway(url, parts, key, home, http)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.8)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        if Path("/proc/self/stat").exists():
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_killed_it_comes_back_and_clients_are_told_when(home: Path) -> None:
    with supervised(home, "--starting", "0.3", "--child") as gateway:
        early = gateway.chat()
        assert early.status_code == 503
        assert 1 <= int(early.headers["retry-after"]) <= 2
        eventually(lambda: gateway.chat().status_code == 200, 60)
        engine = gateway.parts.supervisors[0]
        first = engine.pid
        assert first is not None
        child = int((home / "log" / "engine.log").read_text().split()[-1])
        assert alive(child)

        os.kill(first, signal.SIGKILL)
        refused = eventually(lambda: (answer := gateway.chat()).status_code == 503 and answer)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "engine_unavailable"
        eventually(lambda: gateway.chat().status_code == 200, 60)
        assert engine.pid not in (None, first)
        assert not alive(child)  # nothing of the old one is left
        assert engine.restarts == 1
        assert gateway.metric("gateway_engine_restarts_total", engine=engine.engine.url) == 1
        last = engine.pid
        assert "the fake engine starts" in (home / "log" / "engine.log.1").read_text()
    assert last is not None
    assert not alive(last)
    assert [line["event"] for line in _log(home)][-1] == "stopped"


def test_requests_that_were_running_end_with_an_error(home: Path) -> None:
    with supervised(home, "--seconds-per-token", "0.05") as gateway:
        eventually(lambda: gateway.parts.engines.slots, 60)
        pid = gateway.parts.supervisors[0].pid
        assert pid is not None
        with gateway.streaming(max_tokens=1000) as response:
            blocks = response.iter_raw()
            next(blocks)
            os.kill(pid, signal.SIGKILL)
            assert b"engine_lost" in b"".join(blocks)
        row = gateway.rows()[-1]
        assert (row["outcome"], row["estimated"]) == ("engine_lost", 1)
        eventually(lambda: gateway.chat().status_code == 200, 60)
        assert gateway.parts.admission.running == 0


def test_pauses_grow_while_it_does_not_start(home: Path) -> None:
    with supervised(home, *ENDS) as gateway:
        eventually(lambda: len(gateway.log("engine_ended")) >= 4, 60)
        ended = gateway.log("engine_ended")
        assert [line["restart_in"] for line in ended[:4]] == [0.2, 0.4, 0.8, 0.8]
        assert {line["code"] for line in ended} == {3}
        assert gateway.chat().status_code == 503


def test_one_that_hangs_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PROBE_TIMEOUT", 0.2)
    monkeypatch.setattr(supervisor, "STUCK", 1.0)
    with supervised(home) as gateway:
        eventually(lambda: gateway.log("engine_ready"), 60)
        pid = gateway.parts.supervisors[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: gateway.log("engine_stuck"), 60)
        eventually(lambda: not alive(pid))
        eventually(lambda: gateway.chat().status_code == 200, 60)


def test_one_that_says_it_is_well_and_computes_nothing_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STUCK", 3.0)
    monkeypatch.setattr(supervisor, "HANGS", 1.0)
    with supervised(home, "--answers", "1") as gateway:
        eventually(lambda: gateway.chat().status_code == 200, 60)
        assert gateway.chat().status_code in (502, 503)  # it got nothing, and was tried again
        assert gateway.log("engine_stuck")
        assert not gateway.parts.engines.all[0].in_flight
        eventually(lambda: gateway.chat().status_code == 200, 60)


def test_one_that_is_only_slow_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a full vLLM it answers nothing else while it computes a long answer."""
    monkeypatch.setattr(supervisor, "STUCK", 2.0)
    monkeypatch.setattr(supervisor, "HANGS", 0.5)
    computes, found = engines.Engine.computes, list[bool]()

    async def noted(engine: engines.Engine, seconds: float) -> bool:
        found.append(await computes(engine, seconds))
        return found[-1]

    monkeypatch.setattr(engines.Engine, "computes", noted)
    with supervised(home, "--seconds-per-token", "0.2", "--answers", "1") as gateway:
        eventually(lambda: gateway.parts.engines.slots, 60)
        assert gateway.chat(max_tokens=25).status_code == 200
        assert set(found) == {True}
        assert not gateway.log("engine_stuck")


def test_one_that_ignores_the_polite_signal_is_killed_in_the_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE", 0.2)
    with supervised(home) as gateway:
        eventually(lambda: gateway.parts.engines.slots, 60)
        pid = gateway.parts.supervisors[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # SIGTERM waits for SIGCONT
        before = time.monotonic()
    assert time.monotonic() - before < 5
    assert not alive(pid)


def _log(home: Path) -> list[dict[str, object]]:
    import orjson

    return [orjson.loads(line) for line in (home / "log" / "gateway.jsonl").read_bytes().splitlines()]


def test_an_engines_port_is_none_that_the_system_gives_to_others() -> None:
    """It is chosen before it is bound; a gateway on port 0 was once given the same one in between."""
    chosen = [free_port() for _ in range(50)]
    assert len(set(chosen)) == 50
    handed_out = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(handed_out.read_text().split()[0]) if handed_out.exists() else 49_152
    assert max(chosen) < lowest
