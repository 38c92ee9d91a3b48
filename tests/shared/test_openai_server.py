"""The official openai client, unmodified, against the embedded server (a tiny random model behind it)."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch

from shared.engine import Engine
from shared.models import load
from shared.openai_server import serve

HELLO = [{"role": "user", "content": "hello there"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]},
        },
    }
    for name in ("alpha", "beta")
]

BROKEN_CALL = {"function": {"name": "f", "arguments": "{"}}
BROKEN_SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "objct"}}}


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The tiny model with our tools template and a longer context (weights do not know their context length)."""
    directory = tmp_path_factory.mktemp("served")
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json"):
        (directory / name).symlink_to(tiny_llama / name)
    config = json.loads((tiny_llama / "config.json").read_text()) | {"max_position_embeddings": 2048}
    (directory / "config.json").write_text(json.dumps(config))
    template = Path(__file__).parents[2] / "shared" / "templates" / "smollm2.jinja"
    (directory / "chat_template.jinja").write_text(template.read_text())
    return Engine(load(str(directory), dtype="float32", quiet=True))


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with serve(engine) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def name(engine: Engine) -> str:
    return engine.model.name


def test_chat_and_usage(client: openai.OpenAI, name: str) -> None:
    done = client.chat.completions.create(model=name, messages=HELLO, temperature=0, max_tokens=12)
    assert done.object == "chat.completion"
    assert done.usage is not None
    assert done.usage.completion_tokens <= 12
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.choices[0].finish_reason in ("length", "stop")
    again = client.chat.completions.create(model=name, messages=HELLO, temperature=0, max_tokens=12)
    assert again.choices[0].message.content == done.choices[0].message.content
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == done.usage.prompt_tokens - 1


def test_stream_is_the_same_answer_in_pieces(client: openai.OpenAI, name: str) -> None:
    options = {"model": name, "messages": HELLO, "seed": 4, "max_tokens": 30, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[:-1] == [None] * (len(finishes) - 1)
    assert finishes[-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    streamed = [e for c in chunks if c.choices and c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [e.token for e in streamed] == [e.token for e in whole.choices[0].logprobs.content]
    assert len({c.id for c in chunks}) == 1


def test_logprobs_are_the_models(client: openai.OpenAI, name: str, engine: Engine) -> None:
    done = client.chat.completions.create(
        model=name, messages=HELLO, temperature=0, max_tokens=1, logprobs=True, top_logprobs=5
    )
    model = engine.model
    ids = model.tokenizer.encode(model.tokenizer.render(HELLO))
    hidden = model.transformer.forward(torch.tensor(ids), [model.transformer.new_cache()], [len(ids)])
    direct = model.transformer.logits(hidden[-1:]).log_softmax(-1)[0]
    entry = done.choices[0].logprobs.content[0]
    assert entry.logprob == pytest.approx(direct.max().item(), abs=1e-3)
    assert [t.logprob for t in entry.top_logprobs] == pytest.approx(direct.topk(5).values.tolist(), abs=1e-3)


def test_n_answers_with_one_seed_differ_but_repeat(client: openai.OpenAI, name: str) -> None:
    first = client.chat.completions.create(model=name, messages=HELLO, seed=1, n=3, max_tokens=15)
    texts = [c.message.content for c in first.choices]
    assert len(set(texts)) == 3
    again = client.chat.completions.create(model=name, messages=HELLO, seed=1, n=3, max_tokens=15)
    assert [c.message.content for c in again.choices] == texts
    assert (
        first.usage.prompt_tokens
        == client.chat.completions.create(model=name, messages=HELLO, max_tokens=1).usage.prompt_tokens
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "beta"}}])
def test_forced_tool_calls(client: openai.OpenAI, name: str, choice: object, stream: bool) -> None:
    options = {
        "model": name, "messages": HELLO, "tools": TOOLS, "tool_choice": choice, "max_tokens": 300,
        "parallel_tool_calls": False, "seed": 2,
    }  # fmt: skip
    if stream:
        chunks = list(client.chat.completions.create(**options, stream=True))
        calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
        finish = chunks[-1].choices[0].finish_reason
    else:
        done = client.chat.completions.create(**options)
        calls, finish = done.choices[0].message.tool_calls, done.choices[0].finish_reason
    assert finish == "tool_calls"
    (call,) = calls
    assert call.function.name in ({"beta"} if isinstance(choice, dict) else {"alpha", "beta"})
    assert set(json.loads(call.function.arguments)) == {"x"}


def test_auto_and_none_and_the_way_back(client: openai.OpenAI, name: str) -> None:
    lengths = {}
    for choice in ("auto", "none"):
        done = client.chat.completions.create(
            model=name, messages=HELLO, tools=TOOLS, tool_choice=choice, max_tokens=8, temperature=0
        )
        assert not done.choices[0].message.tool_calls  # a random model does not write a call by chance
        lengths[choice] = done.usage.prompt_tokens
    plain = client.chat.completions.create(model=name, messages=HELLO, max_tokens=1).usage.prompt_tokens
    assert lengths["none"] == plain < lengths["auto"]  # with "none" the model does not even see the tools
    call = {"id": "call_1", "type": "function", "function": {"name": "alpha", "arguments": '{"x": true}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]
    client.chat.completions.create(model=name, messages=messages, tools=TOOLS, max_tokens=4)


def test_json_schema(client: openai.OpenAI, name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
    }
    for seed in range(5):
        done = client.chat.completions.create(
            model=name,
            messages=HELLO,
            seed=seed,
            max_tokens=200,
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        )
        value = json.loads(done.choices[0].message.content)
        assert value["a"] in ("x", "y")
        assert isinstance(value["b"], bool)


def test_completions_echo_scores_the_prompt(client: openai.OpenAI, name: str, engine: Engine) -> None:
    done = client.completions.create(model=name, prompt="The capital", max_tokens=0, echo=True, logprobs=1)
    scored = done.choices[0].logprobs
    ids = engine.model.tokenizer.encode("The capital", add_special=True)
    assert done.choices[0].text == "The capital"
    assert len(scored.token_logprobs) == len(ids)
    assert scored.token_logprobs[0] is None
    assert all(p < 0 for p in scored.token_logprobs[1:])
    assert done.usage.completion_tokens == 0
    several = client.completions.create(model=name, prompt=[ids, [5, 6]], max_tokens=3, temperature=0, n=2)
    assert [c.index for c in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text
    assert several.usage.prompt_tokens == len(ids) + 2


def test_models(client: openai.OpenAI, name: str) -> None:
    assert name in [model.id for model in client.models.list()]
    assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "nope"}, 404, "does not exist; served here"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "use system, user, assistant or tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text only"),
        ({"messages": [{"role": "user"}]}, 400, "content is missing"),
        ({"messages": [{"role": "assistant", "tool_calls": [BROKEN_CALL]}]}, 400, "not a valid call"),
        ({"temperature": 3}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"n": 0}, 400, "n"),
        ({"max_tokens": 100_000}, 400, "maximum context length is 2048"),
        ({"stop": [""]}, 400, "none of them empty"),
        ({"top_logprobs": 3}, 400, "needs logprobs"),
        ({"tool_choice": "required"}, 400, "needs tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "gamma"}}}, 400, "gamma"),
        ({"logit_bias": {"999999": 1}}, 400, "logit_bias"),
        ({"response_format": {"type": "json_schema"}}, 400, "json_schema"),
        ({"response_format": BROKEN_SCHEMA}, 400, "not a valid JSON schema"),
    ],
)  # fmt: skip
def test_bad_requests_get_openai_errors(
    client: openai.OpenAI, name: str, change: dict, status: int, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client.chat.completions.create(**({"model": name, "messages": HELLO, "max_tokens": 5} | change))
    assert caught.value.status_code == status
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_errors_below_the_api(url: str, name: str) -> None:
    for content in (b"{", b"[]", b"\xff"):
        bad = httpx.post(f"{url}/chat/completions", content=content, headers={"content-type": "application/json"})
        assert bad.status_code == 400
        assert "error" in bad.json()
    assert httpx.get(f"{url}/nothing").json()["error"]["type"] == "not_found_error"
    overflow = httpx.post(
        f"{url}/chat/completions", json={"model": name, "messages": HELLO, "max_tokens": 5000, "stream": True}
    )
    assert overflow.status_code == 400
    assert overflow.json()["error"]["code"] == "context_length_exceeded"


def test_a_client_that_leaves_stops_the_computation(url: str, name: str, engine: Engine) -> None:
    start = engine.tokens_decoded
    body = {"model": name, "messages": HELLO, "max_tokens": 1900, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/chat/completions", json=body | {"stream": True}, timeout=60) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number == 10:
                break
    assert _settles(engine)
    assert engine.tokens_decoded - start < 1500
    before = engine.tokens_decoded
    with pytest.raises(httpx.ReadTimeout):  # a plain request, abandoned while it is being answered
        httpx.post(f"{url}/chat/completions", json=body, timeout=0.3)
    assert _settles(engine)
    assert engine.tokens_decoded - before < 1500


def _settles(engine: Engine) -> bool:
    """Whether the engine stops decoding within two seconds."""
    for _ in range(20):
        before = engine.tokens_decoded
        time.sleep(0.1)
        if engine.tokens_decoded == before:
            return True
    return False


def test_an_api_key_is_checked(engine: Engine) -> None:
    from fastapi.testclient import TestClient

    from shared.openai_app import create_app

    http = TestClient(create_app(engine, api_key="s3cret"))
    assert http.get("/v1/models").status_code == 401
    assert (
        http.get("/v1/models", headers={"authorization": "Bearer wrong"}).json()["error"]["code"] == "invalid_api_key"
    )
    assert http.get("/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200


def test_refuses_to_be_reachable_without_a_key(tiny_llama: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "shared.openai_server", "--model", str(tiny_llama)]
    done = subprocess.run([*command, "--host", "0.0.0.0", "--port", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "give --api-key" in done.stderr
    assert "Traceback" not in done.stderr
