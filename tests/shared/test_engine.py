"""The generation loop: greedy is generate's greedy, batches do not mix, prefixes are reused, stops and cancels work."""

import math
import queue
from pathlib import Path

import pytest
import torch

from shared.engine import PREFILL_CHUNK, SHARED_PREFIX, Engine
from shared.errors import UserError
from shared.generation import ContextOverflowError, Event, Request
from shared.grammar import GrammarCompiler
from shared.models import LoadedModel, load
from shared.sampling import Sampling

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LoadedModel:
    return load(str(tiny_llama), dtype="float32", quiet=True)


@pytest.fixture
def engine(model: LoadedModel) -> Engine:
    return Engine(model)


def prompt(model: LoadedModel, text: str = "The capital of France is") -> list[int]:
    return model.tokenizer.encode(text)


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def drain(events: "queue.SimpleQueue[Event]") -> list[Event]:
    result = []
    while not result or result[-1].finish is None:
        result.append(events.get(timeout=30))
    return result


def test_greedy_equals_generate(engine: Engine, tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = prompt(engine.model)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    expected = theirs.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False, pad_token_id=0)[0][len(ids) :]
    events = list(engine.generate(Request(ids, GREEDY, max_tokens=30)))
    assert [event.token for event in events] == expected.tolist()
    assert [event.finish for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].finish == ("stop" if expected[-1] == 2 else "length")


def test_logprobs_equal_a_direct_forward_pass(engine: Engine) -> None:
    ids = prompt(engine.model)
    request = Request(ids, Sampling(seed=3), max_tokens=8, logprobs=4, prompt_logprobs=True, ignore_eos=True)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    generation = engine.submit(request, events.put)
    while engine.step():
        pass
    chosen = [event.logprob for event in drain(events)]
    whole = [*ids, *generation.output]
    transformer = engine.model.transformer
    hidden = transformer.forward(torch.tensor(whole), [transformer.new_cache()], [len(whole)])
    direct = transformer.logits(hidden).log_softmax(-1)
    for position, scored in enumerate([*generation.prompt_logprobs, *chosen]):
        assert scored is not None
        assert scored.token == whole[position + 1]
        assert scored.logprob == pytest.approx(direct[position, scored.token].item(), abs=1e-3)
    assert chosen[0] is not None
    values, tokens = direct[len(ids) - 1].topk(4)
    assert [token for token, _ in chosen[0].top] == tokens.tolist()
    assert [p for _, p in chosen[0].top] == pytest.approx(values.tolist(), abs=1e-3)


def test_same_answer_alone_and_in_a_crowd(model: LoadedModel) -> None:
    """Eleven requests, more than a batch holds, each with its own seed and settings."""
    texts = [
        "the cat",
        "naïve",
        "hello there",
        "You are",
        "def f",
        "because it was",
        "dog",
        "Egypt",
        "x",
        "Tokyo is",
        "1",
    ]
    requests = [
        Request(prompt(model, text), Sampling(temperature=0.9, top_p=0.95, seed=i), max_tokens=5 + i, ignore_eos=True)
        for i, text in enumerate(texts)
    ]
    alone = [text_of(list(Engine(model).generate(request))) for request in requests]
    engine = Engine(model)
    engine.start()
    try:
        queues: list[queue.SimpleQueue[Event]] = [queue.SimpleQueue() for _ in requests]
        for request, events in zip(requests, queues, strict=True):
            engine.submit(request, events.put)
        assert [text_of(drain(events)) for events in queues] == alone
    finally:
        engine.close()


def test_a_shared_prefix_is_copied_not_computed(engine: Engine) -> None:
    ids = prompt(engine.model, "You are a helpful assistant. user: hello there.")
    first = list(engine.generate(Request([*ids, 7, 8], GREEDY, max_tokens=6, ignore_eos=True)))
    computed = engine.tokens_prefilled
    fresh = Engine(engine.model)
    for tail in ([7, 8], [9, 9, 9], [7]):
        request = Request([*ids, *tail], GREEDY, max_tokens=6, ignore_eos=True)
        again = list(engine.generate(request))
        assert [e.token for e in again] == [e.token for e in fresh.generate(request)]
    assert engine.tokens_prefilled - computed < len(ids)
    assert [e.token for e in engine.generate(Request([*ids, 7, 8], GREEDY, max_tokens=6, ignore_eos=True))] == [
        e.token for e in first
    ]


def test_a_long_prompt_goes_in_pieces_and_running_answers_go_on(tiny_llama: Path, tmp_path: Path) -> None:
    import json

    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny_llama / name)
    config = json.loads((tiny_llama / "config.json").read_text()) | {"max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    engine = Engine(load(str(tmp_path), dtype="float32", quiet=True))
    short: queue.SimpleQueue[Event] = queue.SimpleQueue()
    long: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit(Request([5, 6, 7], GREEDY, max_tokens=50, ignore_eos=True), short.put)
    engine.step()
    engine.submit(Request([9] * (3 * PREFILL_CHUNK + 10), GREEDY, max_tokens=1), long.put)
    before = short.qsize()
    while long.empty():
        engine.step()
    assert short.qsize() - before >= 3  # a decode step between any two pieces of the prompt


@pytest.mark.parametrize("cut", range(1, 9))
def test_stop_texts_end_the_answer_and_are_not_part_of_it(engine: Engine, cut: int) -> None:
    request = Request(prompt(engine.model), Sampling(seed=5), max_tokens=40, ignore_eos=True)
    whole = text_of(list(engine.generate(request)))
    stop = whole[10 : 10 + cut]
    events = list(
        engine.generate(Request(request.prompt, Sampling(seed=5), 40, stop=("never this", stop), ignore_eos=True))
    )
    assert text_of(events) == whole[: whole.index(stop)]
    assert events[-1].finish == "stop"


def test_text_held_back_for_a_stop_comes_out_at_the_end(engine: Engine) -> None:
    request = Request(prompt(engine.model), Sampling(seed=5), max_tokens=12, ignore_eos=True)
    whole = text_of(list(engine.generate(request)))
    stop = whole[-3:] + "\x00"
    assert (
        text_of(list(engine.generate(Request(request.prompt, Sampling(seed=5), 12, stop=(stop,), ignore_eos=True))))
        == whole
    )


def test_leaving_the_loop_or_cancelling_stops_the_computation(engine: Engine) -> None:
    for _ in engine.generate(Request(prompt(engine.model), GREEDY, max_tokens=100, ignore_eos=True)):
        break
    assert not engine.step()
    assert engine.tokens_decoded <= 1
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    running = engine.submit(Request(prompt(engine.model), GREEDY, max_tokens=100, ignore_eos=True), events.put)
    for _ in range(5):
        engine.step()
    running.cancel()
    assert not engine.step()
    assert drain(events)[-1].finish == "cancelled"
    assert len(running.output) <= 5


def test_overflow_says_by_how_much(engine: Engine) -> None:
    with pytest.raises(ContextOverflowError, match=r"context length is 128 tokens.*requested 150.*22 too many"):
        engine.submit(Request([5] * 100, max_tokens=50), print)
    with pytest.raises(ContextOverflowError, match="1 too many"):
        engine.submit(Request([5] * 128), print)
    events = list(engine.generate(Request([5] * 120, GREEDY, ignore_eos=True)))
    assert len(events) == 8
    assert events[-1].finish == "length"
    with pytest.raises(UserError, match="prompt is empty"):
        engine.submit(Request([]), print)
    with pytest.raises(UserError, match="no adapter 'x'"):
        engine.submit(Request([5], adapter="x"), print)


def test_one_broken_request_leaves_the_others_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    bad: queue.SimpleQueue[Event] = queue.SimpleQueue()
    good: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit(Request([5, 6], Sampling(logit_bias={10**9: 1.0}), max_tokens=3, ignore_eos=True), bad.put)
    engine.submit(Request([5, 6], GREEDY, max_tokens=3, ignore_eos=True), good.put)
    while engine.step():
        pass
    assert drain(bad)[-1].finish == "error"
    assert drain(good)[-1].finish == "length"


def test_a_crash_of_the_loop_answers_everybody_and_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.start()
    try:
        forward = engine.model.transformer.forward
        monkeypatch.setattr(engine.model.transformer, "forward", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
        (event,) = list(engine.generate(Request([5, 6], GREEDY, max_tokens=3)))
        assert event.finish == "error"
        assert "MemoryError: full" in event.error
        monkeypatch.setattr(engine.model.transformer, "forward", forward)
        assert list(engine.generate(Request([5, 6], GREEDY, max_tokens=3, ignore_eos=True)))[-1].finish == "length"
    finally:
        engine.close()


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"enum": ["S", "M"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "size", "n"],
}
# Required, but described only by what additionalProperties says, or not at all.
UNDESCRIBED = {"type": "object", "required": ["a", "b"], "additionalProperties": {"enum": ["S", "M"]}}
FLAG = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False}


@pytest.mark.parametrize("schema", [SCHEMA, UNDESCRIBED])
def test_constrained_output_always_validates(engine: Engine, schema: dict[str, object]) -> None:
    """A random model writes noise; under the grammar every sample is valid JSON under the schema."""
    import json

    import jsonschema

    compiler = GrammarCompiler(engine.model.tokenizer, engine.model.config.vocabulary, engine.model.config.eos)
    for seed in range(15):
        request = Request([5, 6], Sampling(temperature=1.5, seed=seed), 100, matcher=compiler.json_schema(schema))
        events = list(engine.generate(request))
        assert events[-1].finish == "stop"
        jsonschema.validate(json.loads(text_of(events)), schema)


@pytest.mark.parametrize("parallel", [True, False])
def test_required_tool_calls_are_always_valid(engine: Engine, parallel: bool) -> None:
    import json

    import jsonschema

    from shared.tool_calls import ToolCall, ToolCallParser

    compiler = GrammarCompiler(engine.model.tokenizer, engine.model.config.vocabulary, engine.model.config.eos)
    tools = [{"type": "function", "function": {"name": n, "parameters": FLAG}} for n in ("f", "g.h")]
    for seed in range(12):
        matcher = compiler.tool_calls(tools, required=True, parallel=parallel)
        # After a call only "another one" and "the end" are allowed; this random model would always end.
        sampling = Sampling(temperature=1.5, seed=seed, logit_bias={engine.model.config.eos[0]: -100.0 * parallel})
        events = list(engine.generate(Request([5], sampling, 120, matcher=matcher)))
        parser = ToolCallParser()
        pieces = parser.feed(text_of(events)) + parser.close()
        if parallel:  # a second call begins; 120 tokens do not suffice for it
            assert str(pieces.pop()).startswith("<tool_call>")
        assert len(pieces) == 1
        for call in pieces:
            assert isinstance(call, ToolCall)
            assert call.name in ("f", "g.h")
            jsonschema.validate(json.loads(call.arguments), FLAG)


def test_sampled_tokens_follow_the_model(engine: Engine) -> None:
    """First tokens of many seeds against the softmax of the logits: the whole path, not the sampler alone."""
    from scipy import stats

    ids = prompt(engine.model)
    transformer = engine.model.transformer
    logits = transformer.logits(transformer.forward(torch.tensor(ids), [transformer.new_cache()], [len(ids)]))[-1]
    expected = logits.softmax(-1).double()
    n = 1500
    counts = torch.zeros(len(expected), dtype=torch.double)
    for seed in range(n):
        (event,) = engine.generate(Request(ids, Sampling(seed=seed), max_tokens=1, ignore_eos=True))
        assert event.token is not None
        counts[event.token] += 1
    common = expected * n >= 5  # χ² needs five expected per cell; the rest goes into one cell
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    wanted = [*(expected[common] * n).tolist(), (expected[~common].sum() * n).item()]
    assert math.isclose(sum(wanted), n, rel_tol=1e-4)
    scale = n / sum(wanted)
    assert stats.chisquare(observed, [w * scale for w in wanted]).pvalue > 1e-4


def test_identical_prompts_are_prefilled_once(engine: Engine) -> None:
    ids = prompt(engine.model, "The capital of France is Paris. The capital of Japan is Tokyo. naïve café 🙂🙃 你好")
    assert len(ids) > SHARED_PREFIX
    queues: list[queue.SimpleQueue[Event]] = [queue.SimpleQueue() for _ in range(4)]
    for events in queues:
        engine.submit(Request(ids, GREEDY, max_tokens=5, ignore_eos=True), events.put)
    while engine.step():
        pass
    assert engine.tokens_prefilled + engine.tokens_decoded < len(ids) + 4 * 6
    assert len({text_of(drain(events)) for events in queues}) == 1


def test_the_prefix_cache_is_bounded_in_bytes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared import engine as module

    one = engine.model.transformer.new_cache(64).nbytes()
    monkeypatch.setattr(module, "PREFIX_CACHE_BYTES", 3 * one)
    for i in range(10):
        list(engine.generate(Request([5 + i] * 30, GREEDY, max_tokens=20, ignore_eos=True)))
    assert 1 <= len(engine._finished) <= 4
    assert sum(cache.nbytes() for _, _, cache in engine._finished) <= 3 * one


def test_a_receiver_that_fails_does_not_stop_the_loop(engine: Engine) -> None:
    def refuse(_: Event) -> None:
        raise RuntimeError("gone")

    engine.start()
    try:
        engine.submit(Request([5, 6], GREEDY, max_tokens=3), refuse)
        assert list(engine.generate(Request([5, 6], GREEDY, max_tokens=3, ignore_eos=True)))[-1].finish == "length"
        assert engine.alive()
    finally:
        engine.close()


def test_a_closed_engine_can_be_used_and_started_again(engine: Engine) -> None:
    for _ in range(2):
        engine.start()
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        engine.submit(Request([5, 6], GREEDY, max_tokens=100, ignore_eos=True), events.put)
        engine.close()
        assert drain(events)[-1].finish in ("cancelled", "length")
        assert list(engine.generate(Request([5, 6], GREEDY, max_tokens=2, ignore_eos=True)))[-1].finish == "length"
