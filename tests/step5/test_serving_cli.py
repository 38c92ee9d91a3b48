"""The command line, prices, and how engines are started."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_engine import fake_engine

from shared.config import settings
from shared.errors import UserError
from step5_serving import launch
from step5_serving.checkpoint import OURS, without_blocks
from step5_serving.cli import main
from step5_serving.database import connect
from step5_serving.launch import cpu_environment, embedded_launch, published_adapters, vllm_launch
from step5_serving.prices import find_price, load_prices

ROOT = Path(__file__).parents[2]


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def step5(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the program in this process."""

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["step5", *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Done(code, *capsys.readouterr())

    return call


def test_help_of_every_verb_answers_at_once() -> None:
    """In a process of its own, which must not have imported what takes seconds."""
    script = (
        "import sys\nfrom step5_serving.cli import app\nfrom typer.testing import CliRunner\n"
        "for verb in ([], ['serve'], ['usage'], ['demo'], ['keys'], ['keys', 'create'], ['keys', 'list'],"
        " ['keys', 'revoke']):\n"
        "    done = CliRunner().invoke(app, [*verb, '--help'])\n"
        "    assert done.exit_code == 0 and 'Usage' in done.output, verb\n"
        "print([name for name in ('torch', 'fastapi', 'aiohttp', 'openai', 'vllm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_keys(step5: Any) -> None:
    made = step5("keys", "create", " web shop ", "--models", "a, b", "--requests-per-minute", "60", "--cap", "5")
    assert made.code == 0
    assert made.out.startswith("sk-")  # the key alone, so that KEY=$(step5 keys create …) works
    assert made.out.count("\n") == 1
    (row,) = json.loads(step5("keys", "list", "--json").out)
    assert (row["name"], row["models"], row["requests_per_minute"], row["cap"]) == ("web shop", ["a", "b"], 60, 5.0)
    table = step5("keys", "list").out
    assert "web shop" in table
    assert made.out.strip().split("-", 2)[2] not in table  # a secret may hold dashes, or begin with one
    taken = step5("keys", "create", "web shop")
    assert (taken.code, taken.out) == (2, "")
    assert "exists" in taken.err
    assert step5("keys", "create", "  ").code == 2
    assert step5("keys", "create", "x", "--cap", "-1").code == 2
    assert step5("keys", "revoke", "web shop").code == 0
    assert "revoked" in step5("keys", "list").out
    again = step5("keys", "revoke", "web shop")
    assert again.code == 2
    assert "no usable key" in again.err
    key = json.loads(step5("keys", "create", "other", "--json").out)["key"]
    assert json.loads(step5("keys", "revoke", key.split("-")[1], "--json").out)["name"] == "other"


def test_usage_of_nothing(step5: Any) -> None:
    assert json.loads(step5("usage", "--json").out) == []
    assert "requests" in step5("usage").out
    wrong = step5("usage", "--by", "colour")
    assert wrong.code == 2
    assert "use key, model, day" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "tgi"], "use vllm or embedded"),
        (["--engine", "embedded", "--adapter", "/nowhere"], "no adapter_config.json"),
        (["--engine", "embedded", "--", "--max-model-len", "5"], "no option of serve"),
        (["--engine-url", "http://127.0.0.1:1", "--colour"], "no option of serve"),
        (["--engine-url", "http://127.0.0.1:1", "--host", "192.0.2.1"], "there is no key"),
    ],
)
def test_serve_says_what_is_wrong(step5: Any, arguments: list[str], message: str) -> None:
    done = step5("serve", *arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_port_that_is_taken(step5: Any) -> None:
    with fake_engine() as taken:
        done = step5("serve", "--engine-url", taken.url, "--port", taken.url.rpartition(":")[2])
    assert done.code == 2
    assert "choose another --port" in done.err


def test_prices_of_a_local_engine_are_arithmetic(home: Path) -> None:
    """The example in prices.toml: $0.10 an hour at 204 tokens a second."""
    price = find_price("any-adapter", load_prices())
    assert price is not None
    assert price.output == pytest.approx(0.10 / 3600 / 204 * 1e6)
    assert round(price.output, 3) == 0.136
    assert price.cost(1000, 400, 100) == pytest.approx(
        (600 * price.input + 400 * price.cached + 100 * price.output) / 1e6
    )


def test_own_prices_replace_ours(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "prices.toml").write_text('[hosted.models]\n"gpt-x" = { input = 2.5, cached = 1.25, output = 10 }\n')
    prices = load_prices()
    assert prices["gpt-x"].cost(1_000_000, 0, 100_000) == 3.5
    assert prices["gpt-x"].cost(1_000_000, 1_000_000, 0) == 1.25
    assert "*" in prices


@pytest.mark.parametrize(
    "text",
    ["not toml", "[a]\nb = 1", '[a.models]\n"m" = 3', '[a.models]\n"m" = { input = 1 }',
     '[a.models]\n"m" = { input = -1, output = 1 }', '[a.models]\n"m" = { prefill_per_second = 1 }',
     '[a]\ndollars_per_hour = 1\n[a.models]\n"m" = { prefill_per_second = 0 }'],
)  # fmt: skip
def test_prices_that_make_no_sense(home: Path, text: str) -> None:
    home.mkdir(parents=True)
    (home / "prices.toml").write_text(text)
    with pytest.raises(UserError, match="prices.toml"):
        load_prices()


def adapter(folder: Path, rank: int, base: str = "smollm2-135m") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "base_model_name_or_path": base}))
    return folder


def test_vllms_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(launch, "_has_gpu", lambda: False)
    monkeypatch.setattr(launch, "cpu_has_fast_bfloat16", lambda: True)
    (tmp_path / "chat_template.jinja").touch()
    adapters = [adapter(tmp_path / "tools", 16), adapter(tmp_path / "grader", 24)]
    made = vllm_launch(tmp_path, "smollm2-135m", adapters, slots=8, extra=["--max-model-len", "4096"])
    line = " ".join(made.command)
    assert "-m vllm.entrypoints.openai.api_server" in line
    assert "--served-model-name smollm2-135m --host 127.0.0.1" in line
    assert "--max-num-seqs 8" in line
    assert "--dtype bfloat16" in line
    assert f"--chat-template {tmp_path}/chat_template.jinja" in line
    assert "--max-loras 2 --max-lora-rank 32" in line  # the next rank that has kernels
    assert f"--lora-modules tools={tmp_path}/tools grader={tmp_path}/grader" in line
    assert line.endswith("--max-model-len 4096")
    assert made.env["VLLM_NO_USAGE_STATS"] == made.env["HF_HUB_OFFLINE"] == "1"
    assert made.env["OMP_NUM_THREADS"] == str(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    monkeypatch.setattr(launch, "cpu_has_fast_bfloat16", lambda: False)
    assert "--dtype float32" in " ".join(vllm_launch(tmp_path, "m").command)  # where bfloat16 is emulated
    monkeypatch.setattr(launch, "_has_gpu", lambda: True)
    assert "--dtype bfloat16" in " ".join(vllm_launch(tmp_path, "m").command)
    assert "--enforce-eager" not in vllm_launch(tmp_path, "m").command
    assert "VLLM_CPU_KVCACHE_SPACE" not in vllm_launch(tmp_path, "m").env
    assert "--otlp-traces-endpoint" not in vllm_launch(tmp_path, "m").command
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/")
    settings.cache_clear()
    traced = vllm_launch(tmp_path, "m")
    assert traced.command[-2:] == ["--otlp-traces-endpoint", "http://127.0.0.1:4318/v1/traces"]
    assert traced.env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"


def test_without_vllm_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="--engine embedded"):
        vllm_launch(tmp_path, "m")


def test_what_is_preloaded_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/mine.so")
    environment = cpu_environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    preloaded = environment.get("LD_PRELOAD", "/mine.so").split(":")
    assert preloaded[-1] == "/mine.so"
    assert all(Path(path).exists() for path in preloaded[:-1])


def test_adapters_of_other_models_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared import endpoint

    adapter(tmp_path / "tools", 16)
    adapter(tmp_path / "other", 16, base="another-model")
    monkeypatch.setattr(endpoint, "PUBLISHED", tmp_path)
    monkeypatch.setattr(launch, "PUBLISHED", tmp_path)
    assert published_adapters("smollm2-135m") == [tmp_path / "tools"]
    made = embedded_launch("smollm2-135m", published_adapters("smollm2-135m"))
    assert made.command[-2:] == ["--adapter", str(tmp_path / "tools")]
    assert (made.model, made.slots) == ("smollm2-135m", 8)


def test_vllm_gets_a_checkpoint_without_the_int4_blocks(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors").write_bytes(b"weights")
    assert without_blocks(plain, tmp_path / "linked") == plain
    (plain / OURS).write_bytes(b"blocks")
    linked = without_blocks(plain, tmp_path / "linked")
    assert [path.name for path in linked.iterdir()] == ["model.safetensors"]
    assert (linked / "model.safetensors").read_bytes() == b"weights"
    assert without_blocks(plain, tmp_path / "linked") == linked


def test_the_database_is_for_this_user_only(home: Path) -> None:
    with closing(connect()):
        assert (home / "gateway.db").stat().st_mode & 0o077 == 0
