"""connect(): embedded or remote, chosen by one variable, with clear errors."""

import asyncio
import gc
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import AsyncGeneratorType

import httpx
import openai
import pytest
from tiny_adapter import TARGETS, make_adapter

from shared import endpoint as endpoint_module
from shared.config import settings
from shared.endpoint import Endpoint, connect, hang_up, published_adapter
from shared.errors import UserError
from shared.openai_server import is_loopback, listen


@pytest.fixture
def fake_endpoint() -> Iterator[str]:
    """A fake of a hosted endpoint: lists a model and its adapter to who brings the key, nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("authorization") == "Bearer right"
            found = {"data": [{"id": "big"}, {"id": "small", "parent": "big"}]} if allowed else {"error": {}}
            body = json.dumps(found).encode()
            self.send_response(200 if allowed else 401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/"
    server.shutdown()


def remote(monkeypatch: pytest.MonkeyPatch, url: str, **variables: str) -> None:
    for name, value in {"OPENAI_BASE_URL": url, **variables}.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()


def test_embedded_by_default(tiny_llama: Path) -> None:
    with connect(str(tiny_llama), quiet=True) as endpoint:
        assert endpoint.engine is not None
        body = {"model": endpoint.model, "prompt": "the cat", "max_tokens": 3}
        assert httpx.post(f"{endpoint.base_url}/completions", json=body).status_code == 200
        url = endpoint.base_url
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_remote_when_the_variable_is_set(fake_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote(monkeypatch, fake_endpoint, OPENAI_API_KEY="right")
    with connect(quiet=True) as endpoint:
        assert (endpoint.base_url, endpoint.model, endpoint.engine) == (fake_endpoint.rstrip("/"), "big", None)
        assert endpoint.base == "big"
    with connect("small", quiet=True) as endpoint:
        assert (endpoint.model, endpoint.base) == ("small", "big")
    with pytest.raises(UserError, match="does not serve 'huge'; it lists big, small"), connect("huge"):
        pass


def test_remote_errors_name_the_fix(fake_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote(monkeypatch, fake_endpoint, OPENAI_API_KEY="wrong")
    with pytest.raises(UserError, match="set OPENAI_API_KEY"), connect():
        pass
    remote(monkeypatch, "http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="does not answer"), connect():
        pass


def test_a_taken_port_is_a_sentence() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UserError, match="choose another --port"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.1", "::", "example.org")))


def test_a_role_is_answered_by_its_published_adapter(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "adapters" / "tools"
    make_adapter(tiny_llama, published, TARGETS["some"], seed=0)
    settings_file = published / "adapter_config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"base_model_name_or_path": "tiny"}))
    monkeypatch.setattr(endpoint_module, "PUBLISHED", tmp_path / "adapters")
    assert published_adapter("tools", "tiny") == published
    assert published_adapter("tools", "another") is None
    assert published_adapter("grader", "tiny") is None
    assert published_adapter(None, "tiny") is None

    settings_file.write_text(
        json.dumps(json.loads(settings_file.read_text()) | {"base_model_name_or_path": str(tiny_llama)})
    )
    monkeypatch.setenv("MODEL", str(tiny_llama))
    settings.cache_clear()
    with connect(role="tools", quiet=True) as endpoint:
        assert (endpoint.model, endpoint.base) == ("tools", tiny_llama.name)
        cards = httpx.get(f"{endpoint.base_url}/models").json()["data"]
        parents = {card["id"]: card["parent"] for card in cards if "parent" in card}
        assert parents == {endpoint.base: None, "tools": endpoint.base}
        body = {"model": "tools", "prompt": "the cat", "max_tokens": 3}
        assert httpx.post(f"{endpoint.base_url}/completions", json=body).status_code == 200
    with connect(str(tiny_llama), role="tools", quiet=True) as endpoint:  # a named model is left alone
        assert endpoint.model != "tools"


def test_a_remote_endpoint_that_lists_the_adapter_answers_with_it(
    fake_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote(monkeypatch, fake_endpoint, OPENAI_API_KEY="right")
    with connect(role="small", quiet=True) as endpoint:
        assert endpoint.model == "small"
    with connect(role="tools", quiet=True) as endpoint:
        assert endpoint.model == "big"
    with connect("big", role="small", quiet=True) as endpoint:
        assert endpoint.model == "big"


CLIENT = {"openai", "httpx", "httpx2", "httpcore", "httpcore2"}  # the packages whose generators a stream is made of


def test_hanging_up_leaves_nothing_of_the_client_suspended(tiny_llama: Path) -> None:
    def suspended() -> list[str]:
        found = [thing for thing in gc.get_objects() if type(thing) is AsyncGeneratorType]
        client = [one for one in found if CLIENT & set(Path(one.ag_code.co_filename).parts)]
        return [one.__qualname__ for one in client if one.ag_frame is not None]

    async def ask(endpoint: Endpoint) -> None:
        async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
            stream = await client.chat.completions.create(
                model=endpoint.model, messages=[{"role": "user", "content": "Hi"}], max_tokens=100, stream=True
            )
            async for _ in stream:
                assert suspended() != []
                await hang_up(stream)
                break
            await asyncio.sleep(0.01)  # the one of the loop above is ended by the event loop, in its next turn
            assert suspended() == []

    gc.disable()  # what is left over must not be tidied up before it is seen
    try:
        with connect(str(tiny_llama), quiet=True) as endpoint:
            asyncio.run(ask(endpoint))
    finally:
        gc.enable()
