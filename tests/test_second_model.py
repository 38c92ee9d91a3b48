"""Another model by one setting: every step with a Llama type, and with a Qwen type that has its own chat template, both
from a directory (MODEL) and at a hosted-style endpoint that wants a key (OPENAI_BASE_URL): step 5 serving the model.

The models are tiny and random, so what they say means nothing; that every step comes to its end with them does.

    python -m pytest tests/test_second_model.py
"""

import importlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.config import settings
from tests.step3.fake_encoder import FakeEncoder
from tests.step4.training_rows import write_run


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of conftest's models, with room for the prompts of the steps."""
    folder = tmp_path_factory.mktemp("second") / f"my-{request.param}"
    shutil.copytree(request.getfixturevalue(f"tiny_{request.param}"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


@pytest.fixture(scope="module")
def service(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Step 5 serving the model from the project's own engine; yields the settings that lead there."""
    from step5_serving import keys
    from step5_serving.database import connect
    from step5_serving.launch import choose_launch
    from step5_serving.service import Options, serve_in_thread

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_ROADMAP_HOME", str(tmp_path_factory.mktemp("service")))
        settings.cache_clear()
        with closing(connect()) as database:
            key = keys.create(database, "second model")
        launch = choose_launch("embedded", str(directory), [])
        with serve_in_thread(Options(port=0, launches=[launch])) as (url, parts):
            while not parts.engines.slots:
                time.sleep(0.05)
            yield {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key, "MODEL": launch.model}


@pytest.fixture(params=["MODEL", "OPENAI_BASE_URL"])
def model(request: pytest.FixtureRequest, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting, made."""
    found = {"MODEL": str(directory)} if request.param == "MODEL" else request.getfixturevalue("service")
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a step's program with --json in an empty directory and return the document."""
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()

    def run(step: str, *arguments: object) -> Any:
        monkeypatch.setattr(sys, "argv", [step, *map(str, arguments), "--json"])
        code = 0
        try:
            importlib.import_module(f"{step}.cli").main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    return run


def test_step_1_opens_it(run: Any, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", str(directory))
    settings.cache_clear()
    assert len(run("step1_foundations", "generate", "hello", "-n", 3)["tokens"]) == 3


@pytest.mark.usefixtures("model")
def test_step_2_gives_it_tools(run: Any) -> None:
    Path("tools.py").write_text('def count(word: str) -> int:\n    """Letters."""\n    return len(word)\n')
    mine = ("--no-builtin", "--tools", "tools.py", "--max-total-tokens", 400)
    found = run("step2_tool_calling", "ask", "How long is salmon?", *mine)
    assert found["steps"] == 1
    assert found["usage"]["completion"] > 0


@pytest.mark.usefixtures("model")
def test_step_3_answers_with_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("step3_rag.encoder.Encoder", lambda name="": FakeEncoder())
    Path("notes.md").write_text("# Salmon\n\nSalmon live in the Amber river. Trolls do not.\n")
    run("step3_rag", "ingest", "notes.md")
    found = run("step3_rag", "ask", "Do salmon live in the Amber river?")
    assert found["route"] == "collection"
    assert "generate" in [step["node"] for step in found["steps"]]
    assert found["tokens"] > 0


def test_step_4_trains_it(run: Any, directory: Path, tmp_path: Path) -> None:
    found = run("step4_finetune", "train", write_run(tmp_path, directory))
    assert found["last_loss"] < found["first_loss"]


def test_step_5_serves_it(service: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {service['OPENAI_API_KEY']}"}
    found = httpx.get(f"{service['OPENAI_BASE_URL']}/models", headers=headers).json()
    assert service["MODEL"] in [entry["id"] for entry in found["data"]]
