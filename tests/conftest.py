"""What all tests stand on: tiny random models made on the spot, a home of their own, and no way out to the network.

    python -m pytest -m "not real"     # hermetic: no download, no server elsewhere (make test)
    python -m pytest -m real           # the real model, browsers, servers; fetches what it needs (CI)

The tiny models differ in everything a checkpoint directory may differ in: type, tokenizer, template, tied or untied
head, biases, query/key norms, vocabulary padding, an added BOS. Same seed, same bytes: numbers in tests are stable.
"""

import ipaddress
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.shared.terminal_screen import Terminal

with suppress(ImportError):  # not every exported step has tests that need it
    from hypothesis import settings as hypothesis_settings

    # No timed assertions: on a busy machine a first call takes longer than Hypothesis's 200 ms, and no later one does.
    hypothesis_settings.register_profile("untimed", deadline=None)
    hypothesis_settings.load_profile("untimed")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CORPUS = [
    "The capital of France is Paris. The capital of Japan is Tokyo. The capital of Egypt is Cairo.",
    "the cat sat on the mat because it was warm, and the dog lay by the door because it was cold",
    "naïve café, übergrößen, 你好世界, emoji 🙂🙃, numbers 0123456789, code: def f(x): return {'a': [x]}",
    "You are a helpful assistant. user: hello there. assistant: hello, how can I help you today?",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Another look, and one that trims: what the user typed is not always what the template passes on.
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] | upper }}] {{ m['content'] | trim }} [END]{% endfor %}"
    "{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
)
# Every inner dimension is a multiple of 32, the group size of int8 and int4.
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-type chat model with a tied head (SmolLM2's kind)."""
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama", tied=True, template=CHATML, merges=120, seed=1)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-type model: query/key norms, heads wider than hidden/heads, untied head, BOS, its own template."""
    directory = tmp_path_factory.mktemp("qwen3")
    return make_checkpoint(directory, "qwen3", tied=False, template=BRACKETS, merges=60, seed=2, bos=True, head_dim=32)


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-type model: biases on q, k and v, and no chat template."""
    return make_checkpoint(tmp_path_factory.mktemp("qwen2"), "qwen2", tied=True, template=None, merges=90, seed=3)


@pytest.fixture(params=["llama", "qwen3", "qwen2"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """Each tiny model in turn."""
    directory: Path = request.getfixturevalue(f"tiny_{request.param}")
    return directory


def make_checkpoint(
    directory: Path,
    model_type: str,
    *,
    tied: bool,
    template: str | None,
    merges: int,
    seed: int,
    bos: bool = False,
    head_dim: int = 16,
) -> Path:
    """Write a random checkpoint in Hugging Face layout: config, weights, tokenizer, template."""
    import torch
    from safetensors.torch import save_file

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = train_tokenizer(specials, merges, normalize=model_type != "llama", bos=bos)
    tokenizer.save(str(directory / "tokenizer.json"))
    # Padded like real checkpoints: the last ids have weights and no token.
    vocabulary = (tokenizer.get_vocab_size() // 32 + 1) * 32
    architecture = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[model_type]
    config = SHAPE | {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": vocabulary,
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 2}))
    names = {"bos_token": specials[0], "eos_token": specials[2], "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in _shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            tensors[name] = 1 + 0.1 * noise
        elif name.endswith("bias"):
            tensors[name] = 0.5 * noise
        else:
            # Larger than a usual initialisation, so that attention is far from uniform and every part matters.
            tensors[name] = noise * (1.0 if "embed" in name else 1.5 / shape[-1] ** 0.5)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def train_tokenizer(specials: list[str], merges: int, *, normalize: bool, bos: bool) -> Any:
    """Train a byte-level BPE on CORPUS. normalize: NFC, as Qwen does; bos: put specials[0] before plain text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalize:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(alphabet) + len(specials) + merges
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{specials[0]} $A", special_tokens=[(specials[0], 0)]
        )
    return tokenizer


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a checkpoint, as Hugging Face writes them."""
    hidden, mlp, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (q, hidden),
            prefix + "self_attn.k_proj.weight": (kv, hidden),
            prefix + "self_attn.v_proj.weight": (kv, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, q),
            prefix + "mlp.gate_proj.weight": (mlp, hidden),
            prefix + "mlp.up_proj.weight": (mlp, hidden),
            prefix + "mlp.down_proj.weight": (hidden, mlp),
        }
        if config["model_type"] == "qwen2":
            shapes |= {prefix + f"self_attn.{n}_proj.bias": (size,) for n, size in (("q", q), ("k", kv), ("v", kv))}
        if config["model_type"] == "qwen3":
            shapes |= {prefix + f"self_attn.{n}_norm.weight": (dim,) for n in "qk"}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache directory for a session's hermetic tests: the native kernels are compiled once, not per test."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns and 24 lines, whatever the one that runs the tests is."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


@pytest.fixture(autouse=True)
def isolated_home(
    request: pytest.FixtureRequest, session_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path | None]:
    """Point LLM_ROADMAP_HOME at a temporary directory and forget the user's settings; `real` tests keep both."""
    from shared.config import Settings, settings

    if request.node.get_closest_marker("real"):
        yield None
        return
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(session_home))
    settings.cache_clear()
    yield session_home
    settings.cache_clear()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """The system's Chromium. It keeps an event loop in this thread: what calls asyncio.run has to be set up before."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        message = "no chromium on PATH; install it to run the page tests"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    flags = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=flags.split())
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: "Browser", tmp_path: Path) -> "Iterator[Callable[..., Page]]":
    """Open a self-contained page, given as HTML; at the end none may have complained, or asked for anything."""
    opened: list[tuple[str, Page, list[str], list[str]]] = []

    def open_page(html: str, **options: Any) -> "Page":
        path = tmp_path / f"opened-{len(opened)}.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | options))
        page, complaints, requests = context.new_page(), list[str](), list[str]()
        opened.append((path.as_uri(), page, complaints, requests))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for address, page, complaints, requests in opened:
        page.context.close()
        assert complaints == []
        assert [url for url in requests if not url.startswith("data:")] == [address]


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fail any hermetic test that connects to, or looks up, a machine other than this one.

    Yields the attempts; a test of a failing connection clears them. Child processes are not watched: they inherit a
    home without artifacts and are given a model directory, so they have nothing to fetch.
    """
    if request.node.get_closest_marker("real"):
        yield []
        return
    attempts: list[str] = []

    def check(host: Any) -> None:
        if not is_local(host):
            attempts.append(str(host))
            # OSError, as a machine without network says it: the code under test then ends in its own way.
            raise OSError(f"hermetic test tried to reach {host}")

    connect, connect_ex, lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def checked_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        connect(self, address)

    def checked_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        return connect_ex(self, address)

    def checked_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        check(host)
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", checked_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", checked_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", checked_lookup)
    yield attempts
    if attempts:  # libraries swallow errors and retry, so the attempt itself is the failure
        pytest.fail(f"tried to reach {', '.join(sorted(set(attempts)))}; only loopback is allowed without `real`")


def is_local(host: Any) -> bool:
    """Whether a socket's host is this machine: a loopback address, any of its own, or no name at all."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost", "0.0.0.0", "::"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
