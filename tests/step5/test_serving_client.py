"""The official clients, unmodified, against the gateway."""

import asyncio
from collections.abc import Iterator

import openai
import pytest
from conftest import Gateway, Start, account_of, eventually, new_key
from fake_engine import ADAPTER, MODEL, Fake, fake_engine

from step5_serving.service import Timeouts

HELLO = [{"role": "user", "content": "hello there"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with connect(gateway) as made:
        yield made


def connect(gateway: Gateway, key: str | None = None, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key or gateway.key, max_retries=retries, timeout=20)


def test_chat(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3)
    assert done.choices[0].message.content == "w0 w1 w2 "
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (2, 3)
    assert done.usage.prompt_tokens_details is not None
    assert done.usage.prompt_tokens_details.cached_tokens == 1
    assert done._request_id


def test_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "w0 w1 w2 w3 "
    assert all(chunk.usage is None for chunk in chunks)
    options = {"include_usage": True}
    *_, last = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options=options)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 4


def test_tools(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS)
    calls = done.choices[0].message.tool_calls
    assert calls is not None
    assert (calls[0].function.name, calls[0].function.arguments) == ("look", '{"x": 1}')
    with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=TOOLS) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.name == "look"


def test_plain_completion_and_models(client: openai.OpenAI) -> None:
    assert client.completions.create(model=ADAPTER, prompt="one two").choices[0].text == "w0 w1 w2 w3 "
    assert [model.id for model in client.models.list()][:2] == [MODEL, ADAPTER]
    assert client.models.retrieve(ADAPTER).id == ADAPTER


def test_errors_are_the_classes_that_programs_catch(gateway: Gateway, client: openai.OpenAI, engine: Fake) -> None:
    with connect(gateway, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    scoped = new_key("scoped", models=[ADAPTER], requests_per_minute=1)
    account_of(gateway, scoped)
    with connect(gateway, scoped) as limited:
        with pytest.raises(openai.PermissionDeniedError):
            limited.chat.completions.create(model=MODEL, messages=HELLO)
        limited.chat.completions.create(model=ADAPTER, messages=HELLO)
        with pytest.raises(openai.RateLimitError) as refused:
            limited.chat.completions.create(model=ADAPTER, messages=HELLO)
        assert refused.value.code == "rate_limit_exceeded"
        assert refused.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nothing", messages=HELLO)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=-1)
    engine.healthy = False
    eventually(lambda: not gateway.parts.engines.slots)
    with pytest.raises(openai.InternalServerError) as unavailable:
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert unavailable.value.status_code == 503


def test_a_stream_that_breaks_is_an_error_not_a_short_answer(client: openai.OpenAI, engine: Fake) -> None:
    engine.failures.append("cut")
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "w0 "]
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)


def test_its_own_retries_wait_as_long_as_they_are_told(start: Start) -> None:
    """The engine comes back while the client waits for the Retry-After of its 503: the program sees nothing of it."""
    with fake_engine() as engine:
        gateway = start(engine, timeouts=Timeouts())
        engine.healthy = False
        eventually(lambda: not gateway.parts.engines.slots)
        gateway.parts.engines.all[0].ready_in = lambda: 1.0
        with connect(gateway, retries=2) as patient:

            def later() -> None:
                eventually(lambda: gateway.metric("gateway_errors_total", kind="engine_unavailable"))
                engine.healthy = True

            done, _ = gateway.at_once([lambda: patient.chat.completions.create(model=MODEL, messages=HELLO), later])
            assert done.choices[0].message.content


def test_many_streams_of_the_asynchronous_client(start: Start, engine: Fake) -> None:
    engine.seconds_per_token = 0.005
    gateway = start(engine, max_wait=60)

    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, max_tokens=20)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
            return await asyncio.gather(*[one(client) for _ in range(40)])

    assert set(asyncio.run(all_of_them())) == {"".join(f"w{n} " for n in range(20))}
    assert engine.most_running == 32  # the slots; the rest waited here
    assert sum(row["completion"] for row in gateway.rows()) == 800


def test_langchain(gateway: Gateway) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=MODEL, base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0)
    assert chat.invoke("hello there").content == "w0 w1 w2 w3 "
    assert "".join(str(part.content) for part in chat.stream("hello there")) == "w0 w1 w2 w3 "
    answer = chat.bind_tools(TOOLS).invoke("hello there")
    assert answer.tool_calls[0]["name"] == "look"
