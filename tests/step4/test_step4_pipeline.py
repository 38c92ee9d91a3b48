"""`make step4`: every stage once, resumed where it was stopped, and a table before and after.

python -m pytest tests/step4/test_step4_pipeline.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from harness_world import CITIES, install, write_training

from shared.errors import UserError
from step4_finetune import data_files, pipeline
from step4_finetune.examples import Example, answer_with_calls, write_jsonl
from step4_finetune.pipeline import Pipeline
from tests.shared.scripted_endpoint import Served

TOOL = {
    "type": "function",
    "function": {
        "name": "count_boats",
        "description": "Count boats",
        "parameters": {"type": "object", "properties": {"harbour": {"type": "string"}}, "required": ["harbour"]},
    },
}


@pytest.fixture
def demo_world(served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Stages that take no time: toy tasks, scripted models, and training that only leaves its files."""
    install(monkeypatch, served, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # which the demo sets: put back afterwards
    monkeypatch.setattr(pipeline, "LIMIT", 8)
    log: list[str] = []

    def build(name: str, seed: int, folder: Path) -> dict[str, Any]:
        log.append("data")
        calls = [answer_with_calls([("count_boats", {"harbour": "Bergen"})])]
        rows = [Example(f"e{i}", "synthetic", "single", [{"role": "user", "content": c}, *calls], [TOOL])
                for i, c in enumerate(CITIES)]  # fmt: skip
        for file in ("train_quick.jsonl", "prompts.jsonl"):
            write_jsonl(rows, folder / name / file)
        return {}

    def train(path: Path, overrides: list[str]) -> None:
        log.append(path.stem)
        values = dict(text.split("=", 1) for text in overrides)
        start = Path(values["adapter"]) if "adapter" in values else None
        write_training(Path(values["output_dir"]), Path(values["data"]), start)

    async def sample(client: Any, sampling: Any, examples: list[Example], path: Path) -> dict[str, Any]:
        log.append(f"sample {len(examples)} × {sampling.answers} from {sampling.model}")
        wrong = {"role": "assistant", "content": "I cannot."}
        return {example.id: [wrong, example.messages[-1]] for example in examples}

    monkeypatch.setattr(data_files, "build", build)
    monkeypatch.setattr(pipeline, "train_recipe", train)
    monkeypatch.setattr("step4_finetune.dpo_pairs.sample", sample)
    return log


def test_the_demo_goes_through_all_stages_and_prints_before_and_after(step4: Any, demo_world: list[str]) -> None:
    done = step4("demo")
    assert done.code == 0, done.err
    assert demo_world == ["data", "tools_sft_quick", "sample 8 × 4 from adapter", "tools_dpo_quick"]
    for label in ("base, zero-shot", "base, best", "SFT", "SFT + DPO against SFT, 8 pairs", "minutes: "):
        assert label in done.out
    assert "SFT against base, best prompt\n  simple_python: +50.0 points" in done.out
    page = Path("out/step4/report.html")
    assert f"report: {page.resolve().as_uri()}" in done.out
    assert "SFT + DPO" in page.read_text()
    document = json.loads(step4("demo", "--json").out)
    assert [entry["label"] for entry in document["table"]] == [
        "base, zero-shot",
        "base, best prompt",
        "SFT",
        "SFT + DPO",
    ]
    assert document["preferred"]["group"] == "all"
    # The untuned model is taken to call always, the tuned ones at their word.
    assert [entry["threshold"] for entry in document["table"]] == [0, 0, 0.5, 0.5]


def test_the_demo_again_skips_what_is_there_and_goes_on_after_a_stop(
    step4: Any, demo_world: list[str], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.train_recipe

    def stopped(path: Path, overrides: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train_recipe", stopped)
    assert step4("demo").code == 130
    asked = len(served.requests)
    monkeypatch.setattr(pipeline, "train_recipe", whole)
    done = step4("demo")
    assert "[1/8] data: there already" in done.err
    assert "[2/8] evaluate base: there already" in done.err
    assert "[3/8] train\n" in done.err
    tuned = {request["model"] for request in served.requests[asked:]}
    assert tuned == {"SFT", "SFT + DPO"}
    asked = len(served.requests)
    assert step4("demo").err.count("there already") == 7
    assert len(served.requests) == asked
    assert demo_world.count("data") == 1
    seconds = json.loads(Path("out/step4/demo/stages.json").read_text())
    assert list(seconds) == [stage.name for stage in Pipeline().stages()]


def test_without_pairs_there_is_no_dpo(step4: Any, demo_world: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def right(client: Any, sampling: Any, examples: list[Example], path: Path) -> dict[str, Any]:
        return {example.id: [example.messages[-1]] for example in examples}

    monkeypatch.setattr("step4_finetune.dpo_pairs.sample", right)
    done = step4("demo")
    assert done.code == 0, done.err
    assert "tools_dpo_quick" not in demo_world
    assert "SFT + DPO" not in done.out


def test_the_demo_needs_the_embedded_engine(step4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.config import settings

    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    settings.cache_clear()
    with pytest.raises(UserError, match="unset OPENAI_BASE_URL"):
        Pipeline().run()
