"""A real vLLM with the real model behind the gateway, for test_step5_real.py, and what can be seen of it from outside.

The fixtures are imported by name. vLLM takes half a minute to start, so one serves the whole module.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import Gateway, chat_body, eventually, new_key
from otlp_collector import Collector
from prometheus_client.parser import text_string_to_metric_families

from shared.config import settings
from step5_serving.checkpoint import directory_of
from step5_serving.launch import has_vllm, published_adapters, vllm_launch
from step5_serving.service import Options, serve_in_thread

MODEL = "smollm2-135m"
ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
STARTING = 900.0  # seconds that vLLM may take


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Gateway]:
    """The model and what was downloaded come from the user's home, accounts and logs go to a temporary one."""
    if not has_vllm():
        message = "vLLM is not installed (step5_serving's extra cpu or cuda, Linux)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    directory = directory_of(MODEL)
    home = tmp_path_factory.mktemp("real")
    for name in ("artifacts", "models", "native"):
        (users := settings().llm_roadmap_home / name).mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(users)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_ROADMAP_HOME", str(home))
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # milliseconds between batches
        settings.cache_clear()
        launch = vllm_launch(directory, MODEL, published_adapters(MODEL), slots=8)
        key = new_key()
        with (
            serve_in_thread(Options(port=0, launches=[launch], max_wait=60)) as (url, parts),
            httpx.Client(base_url=url, timeout=120, verify=False, trust_env=False) as http,
        ):
            eventually(lambda: parts.engines.slots, STARTING)
            yield Gateway(url, parts, key, home / "step5", http)
    settings.cache_clear()


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which does not retry."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0, timeout=120) as made:
        yield made


def series(gateway: Gateway, *names: str) -> list[float]:
    """The sums of vLLM's own Prometheus series."""
    text = httpx.get(f"{gateway.parts.engines.all[0].url}/metrics", verify=False, trust_env=False).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = [[sample.value for sample in samples if sample.name == name] for name in names]
    assert all(found), names
    return [sum(values) for values in found]


def running(gateway: Gateway) -> float:
    """Requests that vLLM computes or keeps waiting."""
    return sum(series(gateway, "vllm:num_requests_running", "vllm:num_requests_waiting"))


def at_rest(gateway: Gateway) -> bool:
    """Whether nothing runs or waits, here or in vLLM."""
    admission = gateway.parts.admission
    return running(gateway) == 0 and admission.running == admission.queued == 0


def counted(gateway: Gateway, requests: Sequence[Callable[[], Any]]) -> tuple[list[Any], list[Row], float, float]:
    """Send all at once; return what they returned, their rows, and by how many prompt and answer tokens vLLM's counters
    rose.
    """
    eventually(lambda: at_rest(gateway))
    names = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
    before, known = series(gateway, *names), len(gateway.rows())
    answers = gateway.at_once(requests)
    eventually(lambda: at_rest(gateway))
    after = series(gateway, *names)
    new = [row for row in gateway.rows()[known:] if row["endpoint"] != "/v1/embeddings"]  # which are the gateway's own
    assert not any(row["estimated"] for row in new)
    return answers, new, after[0] - before[0], after[1] - before[1]


def raw_request(gateway: Gateway, **body: Any) -> bytes:
    """The bytes of a chat request."""
    content = json.dumps(chat_body("Count to a thousand.", model=MODEL, ignore_eos=True, **body)).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s" % (gateway.key.encode(), len(content), content)
    )


def processes(group: int) -> list[int]:
    """The ids of a process group: vLLM's server, and the process that computes."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and os.getpgid(int(path.name)) == group:
                found.append(int(path.name))
        except ProcessLookupError:
            continue
    return sorted(found)


def lose(gateway: Gateway, fault: Callable[[], None]) -> float:
    """Let something happen to the engine under load; return after how many seconds all clients had their answers.

    Two have the beginning of a stream, two wait for a whole answer, one comes after the fault.
    """
    known, happened = len(gateway.rows()), []

    def ask(stream: bool) -> httpx.Response:
        return gateway.chat("Count to a thousand.", model=MODEL, max_tokens=1000, ignore_eos=True, stream=stream)

    def happen() -> httpx.Response:
        eventually(lambda: running(gateway) == 4 and gateway.parts.ledger.streamed > 4)
        happened.append(time.monotonic())
        fault()
        return gateway.chat("Too late.", model=MODEL, max_tokens=1)

    answers = gateway.at_once([lambda: ask(True), lambda: ask(True), lambda: ask(False), lambda: ask(False), happen])
    seconds = time.monotonic() - happened[0]
    for answer in answers[:2]:
        assert answer.status_code == 200
        assert b"engine_lost" in answer.content.split(b"\n\n")[-2]
    for answer in answers[2:]:  # tried again, as no byte was sent; but there is no other engine
        code = answer.json()["error"]["code"]
        assert (answer.status_code, code) in ((502, "engine_lost"), (503, "engine_unavailable")), answer.text
        assert int(answer.headers["retry-after"]) >= 1
    admission = gateway.parts.admission
    eventually(lambda: admission.running == admission.queued == gateway.parts.engines.all[0].in_flight == 0)
    lost = gateway.rows()[known:]
    assert len(lost) in (4, 5)  # who came when there was no engine any more never reached one
    assert {row["outcome"] for row in lost} <= {"engine_lost", "engine_unavailable"}
    begun = [row for row in lost if row["completion"]]  # accounted for with what their clients had
    assert [(row["outcome"], row["estimated"]) for row in begun] == [("engine_lost", 1)] * 2
    return seconds


def connection(gateway: Gateway) -> socket.socket:
    """A connection that takes in little at a time."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(120)
    made.connect(gateway.address)
    return made


def read_slowly(made: socket.socket, end: bytes, size: int) -> bytes:
    """What comes, `size` bytes each hundredth of a second, until these bytes are among it."""
    got = b""
    while end not in got and (part := made.recv(size)):
        got += part
        time.sleep(0.01)
    return got


def program(gateway: Gateway, folder: Path) -> Callable[..., Any]:
    """Return what runs another step's program on the gateway, in `folder`, and gives what it says as JSON."""
    if not (ROOT / "step2_tool_calling").is_dir():
        pytest.skip("the other steps are not here: this is an exported one")
    variables = {"OPENAI_BASE_URL": f"{gateway.url}/v1", "OPENAI_API_KEY": gateway.key, "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", *arguments, "--json"],
            env=os.environ | variables, cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
