"""Two replicas on a local Ray cluster behind the gateway; one is killed under load."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Gateway, Start, chat_body, eventually
from fake_engine import Fake

from step5_serving.launch import Launch, free_port

FAKE = Path(__file__).with_name("fake_engine.py")
WORDS, SECONDS = 20, 0.05  # an answer takes a second

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


def fake_launch() -> Launch:
    port = free_port()
    command = [sys.executable, str(FAKE), "--port", str(port), "--seconds-per-token", str(SECONDS)]
    return Launch("fake", "fake-model", command, {}, f"http://127.0.0.1:{port}", 8, 1.0)


def engine_processes() -> dict[int, int]:
    """Process id of each fake engine of this test, and of its replica."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if str(FAKE).encode() in command and b"-c" not in command.split(b"\0"):  # not on its way to become one
                parent = re.search(r"^PPid:\t(\d+)", (entry / "status").read_text(), re.M)
                if parent is not None and Path(f"/proc/{parent[1]}/cmdline").read_bytes().startswith(b"ray::"):
                    found[int(entry.name)] = int(parent[1])
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of this machine with two replicas, which takes 20 s; yields the port of Serve's proxy."""
    if sys.platform != "linux":
        pytest.skip("the engines' processes are looked up in /proc")
    ray = pytest.importorskip("ray", reason="ray is not installed: step5_serving's extra `ray`")
    serve = pytest.importorskip("ray.serve")
    from step5_serving.deploy.ray_serve import Arguments, replicas

    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE.parent), str(FAKE.parents[2])]))
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            arguments = Arguments(min_replicas=2, max_replicas=2, slots=8, cpus=0.1)
            serve.run(replicas(fake_launch, arguments), route_prefix="/")
            yield str(port)
        finally:
            serve.shutdown()
            ray.shutdown()


def ask(gateway: Gateway, stream: bool) -> tuple[bool, int, bytes]:
    body: dict[str, Any] = {"stream": stream, "max_tokens": WORDS}
    response = gateway.post("/v1/chat/completions", json=chat_body(**body))
    return stream, response.status_code, response.content


def test_a_replica_killed_under_load_loses_only_streams_that_had_begun(cluster: str, start: Start) -> None:
    # Two names of one proxy, as a cluster of two nodes has two proxies.
    gateway = start(Fake(url=f"http://127.0.0.1:{cluster}"), Fake(url=f"http://localhost:{cluster}"), slots=8)
    engines = engine_processes()
    assert len(engines) == 2
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(ask, gateway, number % 2 == 0) for number in range(40)]
        eventually(lambda: gateway.metric("gateway_running") >= 8)
        time.sleep(0.5)
        victim, replica = next(iter(engines.items()))
        running = int(gateway.metric("gateway_running"))
        os.kill(replica, signal.SIGKILL)
        answers = [future.result() for future in asked]

    lost = 0
    for stream, status, content in answers:
        assert status == 200, content
        if not stream:
            assert f"w{WORDS - 1}".encode() in content  # whole, by a second attempt if need be
        elif not content.rstrip().endswith(b"data: [DONE]"):
            lost += 1
            assert b"engine_lost" in content  # never just the end of the stream
    assert gateway.metric("gateway_retries_total") >= 1
    assert 0 < lost <= running / 2 + 1  # the dead replica had about half of what was running, and half of that streamed
    rows = gateway.rows()
    assert len(rows) == 40
    assert sum(row["outcome"] == "ok" for row in rows) == 40 - lost

    eventually(lambda: victim not in engine_processes())  # it does not outlive its replica
    eventually(lambda: len(engine_processes()) == 2, 180)  # Serve has replaced the replica
    assert gateway.chat().status_code == 200


def test_an_engine_that_dies_takes_its_replica_along(cluster: str, start: Start) -> None:
    gateway = start(Fake(url=f"http://127.0.0.1:{cluster}"), Fake(url=f"http://localhost:{cluster}"))
    victim, replica = next(iter(engine_processes().items()))
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{replica}").exists())
    for _ in range(6):  # none of them meets the dead engine
        assert gateway.chat(max_tokens=2).status_code == 200
    eventually(lambda: len(engine_processes()) == 2, 180)
