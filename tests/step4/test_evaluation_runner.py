"""Items to answers on disk: order, continuing, and what is refused."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.errors import UserError
from step4_finetune.evaluation.runner import answers_path, evaluate, read_answers, read_header, weights_digest
from step4_finetune.evaluation.task import Answer, Item, Run, Score, Task
from tests.shared.scripted_endpoint import Said, Served, question, scripted_endpoint

RUN = Run("base, zero-shot", "m", "native")


def echo(request: dict[str, Any]) -> Said:
    return Said(f"answer to {question(request)}")


def task_of(*questions: str) -> Task:
    items = [Item(f"id-{q}", "g", [{"role": "user", "content": q}], q) for q in questions]
    return Task("toy", items, ("native", "choice"), lambda *_: Score(True), lambda _: True)


def run(
    path: Path,
    task: Task,
    script: Callable[[dict[str, Any]], Said] = echo,
    *,
    setting: Run = RUN,
    concurrency: int = 4,
    progress: Callable[[Answer], None] = lambda _: None,
) -> tuple[list[Answer], Served]:
    async def whole(served: Served) -> list[Answer]:
        async with served.client() as client:
            return await evaluate(
                client, setting, task, path, endpoint="embedded", concurrency=concurrency, progress=progress
            )

    with scripted_endpoint(script) as served:
        return asyncio.run(whole(served)), served


def test_answers_come_in_the_items_order_though_the_first_takes_longest(tmp_path: Path) -> None:
    def slow_first(request: dict[str, Any]) -> Said:
        time.sleep(0.2 if question(request) == "a" else 0)
        return echo(request)

    seen: list[str] = []
    answers, _ = run(tmp_path / "x.jsonl", task_of(*"abcd"), slow_first, progress=lambda answer: seen.append(answer.id))
    assert [answer.text for answer in answers] == [f"answer to {q}" for q in "abcd"]
    assert sorted(seen) == ["id-a", "id-b", "id-c", "id-d"]
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["label"] == "base, zero-shot"
    assert json.loads(lines[-1])["id"] == "id-a"


def test_no_more_requests_at_a_time_than_asked_for(tmp_path: Path) -> None:
    def slow(request: dict[str, Any]) -> Said:
        time.sleep(0.02)
        return echo(request)

    _, served = run(tmp_path / "x.jsonl", task_of(*"abcdefgh"), slow, concurrency=3)
    assert served.most_at_once == 3


def test_a_killed_run_goes_on_and_a_half_line_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    run(path, task_of(*"ab"), concurrency=1)
    path.write_bytes(path.read_bytes()[:-7])  # what a kill in the middle of a write leaves
    answers, served = run(path, task_of(*"abc"), concurrency=1)
    assert [question(request) for request in served.requests] == ["b", "c"]
    assert [answer.text for answer in answers] == [f"answer to {q}" for q in "abc"]
    again, served = run(path, task_of(*"cba"))
    assert served.requests == []
    assert [answer.id for answer in again] == ["id-c", "id-b", "id-a"]


def test_an_item_that_was_changed_is_asked_again(tmp_path: Path) -> None:
    path, task = tmp_path / "x.jsonl", task_of(*"ab")
    run(path, task)
    changed = replace(task.items[1], messages=[{"role": "user", "content": "another b"}])
    answers, served = run(path, replace(task, items=[task.items[0], changed]))
    assert [question(request) for request in served.requests] == ["another b"]
    assert answers[1].text == "answer to another b"
    assert read_answers(path)["id-b"].text == "answer to another b"


def test_a_file_of_other_settings_is_refused_with_what_differs(tmp_path: Path) -> None:
    path, task = tmp_path / "x.jsonl", task_of("a")
    run(path, task)
    with pytest.raises(UserError, match="another weights and max_tokens; delete it"):
        run(path, task, setting=replace(RUN, weights="abc", max_tokens=9))
    path.write_text("not ours\n")
    with pytest.raises(UserError, match="not a file of answers"):
        run(path, task)
    with pytest.raises(UserError, match="cannot be asked as constrained: use native or choice"):
        run(tmp_path / "y.jsonl", task, setting=replace(RUN, strategy="constrained"))


def test_an_endpoint_that_fails_ends_the_run_and_keeps_what_is_there(tmp_path: Path) -> None:
    def fails_at_c(request: dict[str, Any]) -> Said:
        return Said(status=500, message="out of memory") if question(request) == "c" else echo(request)

    with pytest.raises(UserError, match="500.*out of memory"):
        run(tmp_path / "x.jsonl", task_of(*"abcd"), fails_at_c, concurrency=1)
    assert list(read_answers(tmp_path / "x.jsonl")) == ["id-a", "id-b"]


def test_settings_make_the_file_name_and_weights_the_settings(tmp_path: Path) -> None:
    task = task_of("a")
    one = answers_path(tmp_path, RUN, task, "embedded")
    assert one.name.startswith("toy-base-zero-shot-")
    assert one == answers_path(tmp_path, RUN, task, "embedded")
    assert one != answers_path(tmp_path, replace(RUN, weights="retrained"), task, "embedded")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    digest = weights_digest(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    assert weights_digest(tmp_path) != digest
    with pytest.raises(UserError, match="no .safetensors"):
        weights_digest(tmp_path / "empty")


def test_a_header_says_what_a_file_measured(tmp_path: Path) -> None:
    run(tmp_path / "x.jsonl", task_of("a"))
    header = read_header(tmp_path / "x.jsonl")
    assert (header["task"], header["model"], header["prompt"], header["endpoint"]) == ("toy", "m", "none", "embedded")
    (tmp_path / "y.jsonl").write_text("[1]\n")
    for name in ("y.jsonl", "missing.jsonl"):
        with pytest.raises(UserError, match="not a file of answers"):
            read_header(tmp_path / name)
