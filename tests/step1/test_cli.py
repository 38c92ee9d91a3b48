"""Every verb, as a person or a program calls it, on each tiny model: output, JSON, pictures, mistakes.

python -m pytest tests/step1/test_cli.py
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = "the cat sat on [the] mat 🙂"
VERBS = [
    ["load"],
    ["tokens", TEXT],
    ["next", TEXT, "--target", "the", "--top-p", "0.9"],
    ["next", "a", "--top-k", "3", "--temperature", "0.5", "--min-p", "0.01"],
    ["embed", "the", "cat", "zzqy", "🙂", "[b]"],
    ["embed", "the"],
    ["attention", TEXT],
    ["attention", "a", "--layer", "1", "--head", "2"],
    ["lens", TEXT],
    ["lens", "a", "--position", "0"],
    ["ablate", TEXT, "--target", "the"],
    ["ablate", "a", "--target", "zzqy"],
]
PICTURES = {"embed", "attention", "ablate"}


def width(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(line.rstrip())


@pytest.mark.parametrize("arguments", VERBS, ids=lambda a: " ".join(a))
def test_verbs_for_people(step1: Any, tiny_model: Path, arguments: list[str], tmp_path: Path) -> None:
    done = step1(*arguments, "--model", tiny_model, "--dtype", "float32")
    assert done.code == 0, done.err
    assert done.out.strip()
    # The picture's path is on a line of its own and may be long; everything else fits a plain terminal.
    assert [line for line in done.out.splitlines() if width(line) > 80 and "picture:" not in line] == []
    if arguments[0] in PICTURES:
        assert (tmp_path / "out" / f"{arguments[0]}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", VERBS, ids=lambda a: " ".join(a))
def test_verbs_for_programs(step1: Any, tiny_model: Path, arguments: list[str], tmp_path: Path) -> None:
    picture = ["--output", tmp_path / "deep" / "map.png"] if arguments[0] in PICTURES else []
    done = step1(*arguments, *picture, "--json", "--model", tiny_model, "--dtype", "int4")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert isinstance(document, dict)
    if picture:
        assert document["png"] == str(picture[1])
        assert Path(document["png"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_dtypes(step1: Any, tiny_qwen3: Path, dtype: str) -> None:
    for arguments in (VERBS[0], VERBS[2], VERBS[5], VERBS[8], VERBS[10]):  # one call per verb that computes
        done = step1(*arguments, "--json", "--model", tiny_qwen3, "--dtype", dtype)
        assert done.code == 0, done.err
        json.loads(done.out)


def test_chat_template(step1: Any, tiny_llama: Path, tiny_qwen3: Path) -> None:
    for directory in (tiny_llama, tiny_qwen3):
        document = json.loads(step1("tokens", "hello", "--chat", "--json", "--model", directory).out)
        assert {token["source"] for token in document["tokens"]} == {"text", "template"}
        result = json.loads(step1("next", "hello", "--chat", "--json", "--model", directory).out)
        assert result["prompt_tokens"] == len(document["tokens"])


def test_compare(step1: Any, tiny_llama: Path, tiny_qwen3: Path, tiny_qwen2: Path) -> None:
    more = ["--compare", tiny_qwen3, "--compare", tiny_qwen2]
    document = json.loads(step1("tokens", TEXT, "--json", "--model", tiny_llama, *more).out)
    assert [m["model"] for m in document["models"]] == [str(d) for d in (tiny_llama, tiny_qwen3, tiny_qwen2)]
    assert len({len(m["tokens"]) for m in document["models"]}) > 1
    done = step1("tokens", TEXT, "--model", tiny_llama, *more)
    assert done.code == 0
    assert "vocabulary" in done.out


def test_model_from_the_environment(step1: Any, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.config import settings

    monkeypatch.setenv("MODEL", str(tiny_qwen2))
    settings.cache_clear()
    assert json.loads(step1("load", "--json").out)["directory"] == str(tiny_qwen2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokens", ""], "empty"),
        (["next", ""], "empty"),
        (["next", "a", "--temperature", "-1"], "--temperature"),
        (["next", "a", "--top-p", "2"], "--top-p"),
        (["next", "a", "--target", ""], "--target"),
        (["next", "a", "--dtype", "int5"], "int5"),
        (["next", "a", "--device", "tpu"], "tpu"),
        (["next", "word " * 300], "context is 128"),
        (["next", "a", "--adapter", "missing"], "adapter"),
        (["attention", "a", "--layer", "3"], "layers 0 to 2"),
        (["attention", "a", "--head", "-1"], "heads 0 to 3"),
        (["attention", "word " * 300], "limit"),
        (["lens", "a", "--position", "99"], "--position"),
        (["ablate", "a", "--target", " "], "--target"),
        (["embed", " "], "WORD"),
        (["embed", "a", "--output", "/dev/null/map.png"], "--output"),
        (["tokens", "a", "--compare", "./nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
@pytest.mark.parametrize("json_mode", [False, True])
def test_mistakes_are_one_line_and_exit_code_2(
    step1: Any, tiny_llama: Path, arguments: list[str], message: str, json_mode: bool
) -> None:
    done = step1(*arguments, "--model", tiny_llama, *(["--json"] if json_mode else []))
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert (done.code, len(errors)) == (2, 1), done
    assert message in errors[0]
    assert "Traceback" not in done.err
    if json_mode:
        assert done.out == ""


@pytest.mark.parametrize("arguments", [["nonsense"], ["next"], ["next", "a", "--top-k", "many"], ["ablate", "a"], []])
def test_bad_usage_is_exit_code_2(step1: Any, arguments: list[str]) -> None:
    done = step1(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_a_model_that_is_not_there(step1: Any) -> None:
    done = step1("next", "a", "--model", "./nowhere")
    assert done.code == 2
    assert done.err.startswith("error: MODEL='./nowhere': no such directory")


@pytest.mark.parametrize("verb", ["load", "tokens", "next", "embed", "attention", "lens", "ablate"])
def test_help_is_quick_and_has_an_example(verb: str) -> None:
    start = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "step1_foundations", verb, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert f"Example: step1 {verb}" in done.stdout
    for option in ("--json", "--model", "--adapter", "--device", "--dtype", "[default:"):
        assert option in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported.isdisjoint({"torch", "matplotlib", "transformers", "numpy", "tokenizers"})
    assert seconds < 3  # 0.2 s on an idle machine; the imports above are the real check


def test_the_network_guard_catches_swallowed_attempts(no_network: list[str]) -> None:
    import socket

    with pytest.raises(OSError, match="hermetic"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="hermetic"):
        socket.getaddrinfo("example.com", 80)
    assert no_network == ["192.0.2.1", "example.com"]
    no_network.clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
