"""Pairs for DPO: what becomes a pair, and sampling that survives a kill."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from calls_world import OSLO, TEXT, TOOLS, example

from shared.errors import UserError
from shared.results import read_results
from shared.tokenizer import ChatTokenizer
from step4_finetune import dpo_pairs
from step4_finetune.dpo_pairs import (
    Sampling,
    count_by_kind,
    make_pairs,
    plain,
    read_samples,
    sample,
    spread,
    write_pairs,
)
from step4_finetune.examples import Example, answer_with_calls, write_jsonl

# -- pairs ---------------------------------------------------------------------------------------------------------


def said(*calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return answer_with_calls(calls)


def test_pairs_have_the_most_frequent_right_and_wrong_answer_and_are_counted() -> None:
    examples = [
        example("mixed", OSLO),
        example("right", OSLO),
        example("wrong", OSLO),
        example("none"),
        example("empty"),
    ]
    bad, worse = said(("weather", {"city": "Rome"})), said(("traffic", {"city": "Oslo"}))
    lower = said(("weather", {"city": "oslo"}))
    answers = {
        "mixed": [bad, lower, worse, said(OSLO), worse, lower],
        "right": [said(OSLO)] * 4,
        "wrong": [bad, TEXT],
        "none": [TEXT, said(OSLO)],
        "empty": [],
    }
    rows, report = make_pairs(examples, answers)
    assert [(row["id"], row["origin"], row["kind"]) for row in rows] == [
        ("mixed/0", "sampled", "single"), ("wrong/0", "gold", "single"), ("none/0", "sampled", "no_tool"),
    ]  # fmt: skip
    assert (rows[0]["chosen"], rows[0]["rejected"]) == (lower, worse)
    assert (rows[1]["chosen"], rows[1]["rejected"]) == (said(OSLO), bad)
    assert (rows[2]["chosen"], rows[2]["rejected"]) == (TEXT, said(OSLO))
    assert (report.prompts, report.answers, report.right) == (5, 14, 8)
    assert (report.always_right, report.never_right) == (1, 1)
    assert report.pairs == {"sampled": 2, "gold": 1}
    assert report.kinds == {"single": 2, "no_tool": 1}
    assert report.wrong == {"wrong value": 2, "wrong function": 2, "no call": 1, "unexpected call": 1}
    counted = count_by_kind(examples, answers)
    kinds = {row["name"]: [entry["value"] for entry in row["metrics"].values()] for row in counted}
    assert kinds == {  # prompts, share of right answers, always right, never right, pairs, with the gold answer
        "single": [3, pytest.approx(100 * 7 / 12), 1, 1, 2, 1],
        "no_tool": [2, 50, 0, 0, 1, 0],
        "all": [5, pytest.approx(100 * 8 / 14), 1, 1, 3, 1],
    }


def test_gold_can_be_left_out_and_more_than_one_pair_taken() -> None:
    bad, worse = said(("weather", {"city": "Rome"})), said(("traffic", {"city": "Oslo"}))
    answers = {"a": [bad, worse], "b": [bad, worse, said(OSLO)]}
    examples = [example("a", OSLO), example("b", OSLO)]
    rows, report = make_pairs(examples, answers, per_prompt=2, gold=False)
    assert [row["id"] for row in rows] == ["b/0", "b/1"]
    assert report.pairs == {"sampled": 2}


def test_pairs_are_what_the_trainer_reads(tiny_llama: Path, tmp_path: Path) -> None:
    from step4_finetune.preference_trainer import read_pairs

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tiny_llama / name).read_text())
    template = Path(__file__).parents[2] / "shared/templates/smollm2.jinja"
    (tmp_path / "chat_template.jinja").write_text(template.read_text())
    broken = plain({"content": None, "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Os'}}]})
    rows, _ = make_pairs([example("a", OSLO), example("b")], {"a": [broken], "b": [TEXT, said(OSLO)]})
    write_pairs(rows, tmp_path / "pairs.jsonl")
    tokenizer = ChatTokenizer(tmp_path)
    [first, second], _ = read_pairs(tmp_path / "pairs.jsonl", tokenizer, 10_000)
    assert first.chosen.prompt == first.rejected.prompt
    assert first.tools == first.rejected.tools != ""
    assert tokenizer.decode(first.rejected.completion) == (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Os}\n</tool_call><|im_end|>'
    )
    assert tokenizer.decode(second.chosen.completion) == "I cannot do that.<|im_end|>"


def test_prompts_are_spread_over_the_whole() -> None:
    examples = [example(str(n)) for n in range(10)]
    assert [e.id for e in spread(examples, 4)] == ["0", "2", "5", "7"]
    assert spread(examples, None) == spread(examples, 99) == examples


# -- sampling ------------------------------------------------------------------------------------------------------


class Endpoint:
    """A server that answers each question in `n` ways, made from question and seed; counts what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.fail_after = 10_000
        self.refuse = ""
        self.seconds = 0.0
        self.base_url = ""
        self.lock = threading.Lock()

    def reply(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            self.requests.append(request)
            number = len(self.requests)
        question = request["messages"][-1]["content"]
        if number > self.fail_after:
            return 401, {"error": {"message": "no more"}}
        time.sleep(self.seconds)
        if self.refuse and self.refuse in question:
            return 400, {"error": {"message": "too long"}}
        choices = []
        for index in range(request["n"]):
            city = ["Oslo", "Rome", "Paris"][(len(question) + request["seed"] + index) % 3]
            function = {"name": "weather", "arguments": json.dumps({"city": city})}
            call = {"id": f"call_{len(self.requests)}{index}", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            finish = "length" if index == 3 else "tool_calls"
            choices.append({"index": index, "message": message, "finish_reason": finish, "logprobs": None})
        return 200, {"id": "c", "object": "chat.completion", "created": 1, "model": "fake", "choices": choices}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    fake = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send(*fake.reply(request))

        def send(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def draw(endpoint: Endpoint) -> Callable[..., dict[str, list[dict[str, Any]]]]:
    import openai

    def run(path: Path, examples: list[Example], **sampling: Any) -> dict[str, list[dict[str, Any]]]:
        async def whole() -> dict[str, list[dict[str, Any]]]:
            async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key="x", max_retries=0) as client:
                return await sample(client, Sampling("fake", **sampling), examples, path, concurrency=3)

        return asyncio.run(whole())

    return run


EXAMPLES = [example("x" * n, OSLO) for n in range(1, 8)]


def test_answers_are_drawn_once_with_the_settings_and_without_cut_off_ones(
    endpoint: Endpoint, draw: Callable[..., Any], tmp_path: Path
) -> None:
    answers = draw(tmp_path / "samples.jsonl", EXAMPLES, temperature=0.7, seed=5)
    assert list(answers) == [e.id for e in EXAMPLES]
    assert all(len(found) == 3 for found in answers.values())  # the fourth was cut off
    assert answers["x"][0]["tool_calls"][0]["id"] == "call_0"
    request = endpoint.requests[0]
    assert (request["n"], request["temperature"], request["seed"], request["model"]) == (4, 0.7, 5, "fake")
    assert request["tools"] == TOOLS
    assert request["messages"][-1]["role"] == "user"
    again = draw(tmp_path / "samples.jsonl", EXAMPLES, temperature=0.7, seed=5)
    assert again == answers
    assert len(endpoint.requests) == len(EXAMPLES)


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(
    endpoint: Endpoint, draw: Callable[..., Any], tmp_path: Path
) -> None:
    undisturbed = draw(tmp_path / "a.jsonl", EXAMPLES)
    path = tmp_path / "b.jsonl"
    draw(path, EXAMPLES[:3])
    with path.open("a") as file:
        file.write('{"id": "xxxx", "ask')  # killed in the middle of a line
    asked = len(endpoint.requests)
    assert draw(path, EXAMPLES) == undisturbed
    assert len(endpoint.requests) == asked + 4
    # Whatever the order of the answers in the files: the same pairs, to the byte.
    for name, answers in (("p", undisturbed), ("q", draw(path, EXAMPLES))):
        write_pairs(make_pairs(EXAMPLES, answers)[0], tmp_path / name)
    assert (tmp_path / "p").read_bytes() == (tmp_path / "q").read_bytes() != b""


def test_an_example_that_changed_is_asked_again(endpoint: Endpoint, draw: Callable[..., Any], tmp_path: Path) -> None:
    draw(tmp_path / "s.jsonl", EXAMPLES[:2])
    changed = example("x", OSLO)
    changed.messages[0]["content"] += " Tomorrow, I mean."
    draw(tmp_path / "s.jsonl", [changed, EXAMPLES[1]])
    assert len(endpoint.requests) == 3


def test_answers_of_other_settings_are_not_mixed(draw: Callable[..., Any], tmp_path: Path) -> None:
    draw(tmp_path / "s.jsonl", EXAMPLES[:1])
    with pytest.raises(UserError, match="holds answers with another adapter, temperature; delete it"):
        draw(tmp_path / "s.jsonl", EXAMPLES, temperature=1.0, adapter="abc")
    (tmp_path / "s.jsonl").write_text("hello\n")
    with pytest.raises(UserError, match="is not a file of answers"):
        read_samples(tmp_path / "s.jsonl", Sampling("fake"))


def test_a_failing_endpoint_is_one_sentence_and_keeps_the_answers(
    endpoint: Endpoint, draw: Callable[..., Any], tmp_path: Path
) -> None:
    endpoint.fail_after, endpoint.seconds = 2, 0.3  # the failure comes first; the answers are still under way
    with pytest.raises(UserError, match="the endpoint fails: .*no more.*the same command goes on from here"):
        draw(tmp_path / "s.jsonl", EXAMPLES)
    assert len(read_samples(tmp_path / "s.jsonl", Sampling("fake"))) == 2
    endpoint.fail_after, endpoint.seconds = 10_000, 0
    assert all(draw(tmp_path / "s.jsonl", EXAMPLES).values())


def test_a_refused_prompt_has_no_answers_and_makes_no_pair(
    endpoint: Endpoint, draw: Callable[..., Any], tmp_path: Path
) -> None:
    endpoint.refuse = "xxxxxxx"
    answers = draw(tmp_path / "s.jsonl", EXAMPLES)
    assert answers["xxxxxxx"] == []
    _, report = make_pairs(EXAMPLES, answers)
    assert (report.prompts, report.answers, report.never_right + report.always_right) == (7, 18, 0)


def test_the_command_writes_pairs_and_report(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from shared.config import settings

    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.base_url)
    settings.cache_clear()
    write_jsonl(EXAMPLES, tmp_path / "prompts.jsonl")
    out = tmp_path / "pairs.jsonl"
    measured = tmp_path / "results.json"
    asked = [str(tmp_path / "prompts.jsonl"), str(out), "--limit", "5", "--results", str(measured), "--json"]
    monkeypatch.setattr("sys.argv", ["x", *asked])
    dpo_pairs.main()
    report = json.loads(capsys.readouterr().out)
    assert (report["prompts"], report["answers"], report["right"]) == (5, 15, 5)
    assert report == json.loads(out.with_suffix(".report.json").read_text())
    assert len(out.read_text().splitlines()) == report["pairs"]["sampled"] == 5
    written = read_results(measured)
    assert written["n"] == 5
    assert written["command"].endswith("--limit 5 --results " + str(measured) + " --json")
    everything = {name: entry["value"] for name, entry in written["rows"][-1]["metrics"].items()}
    assert everything == {
        "prompts": 5, "answers right": pytest.approx(100 / 3),
        "always right": 0, "never right": 0, "pairs": 5, "with the gold answer": 0,
    }  # fmt: skip
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path / "prompts.jsonl"), str(out), "--adapter", str(tmp_path)])
    with pytest.raises(UserError, match="no LoRA adapter is there"):
        dpo_pairs.main()
