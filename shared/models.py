"""From a name to a model ready to run: find the checkpoint, choose device and dtype with reasons, load the weights.

MODEL=smollm2-135m            a name in shared/catalog.toml (GGUF is converted once, then reused)
MODEL=./my-model              a Hugging Face checkpoint directory
MODEL=org/name@revision       the Hub, or a mirror of it (HF_ENDPOINT)

python -m step1_foundations load      # prints what was chosen and why
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shared import native
from shared.config import DType, settings
from shared.errors import UserError
from shared.linear import DENSE_FROM_ROWS, DenseMatrix, Matrix, QuantizedMatrix
from shared.lora import FUSED, Adapter, load_adapter
from shared.model_config import ModelConfig, read_config
from shared.quantization import GROUP, dequantize_q4_1, dequantize_q8_0, quantize_q4_1, quantize_q8_0
from shared.terminal import say
from shared.tokenizer import ChatTokenizer
from shared.transformer import Layer, Transformer


class Choice(NamedTuple):
    """One decision of the loader: what was decided, the value, and why."""

    what: str
    value: str
    reason: str


@dataclass
class LoadedModel:
    """A model in memory. adapters: name → LoRA; the name "" never occurs, it means the base model elsewhere."""

    name: str
    directory: Path
    config: ModelConfig
    tokenizer: ChatTokenizer
    transformer: Transformer
    dtype: DType
    choices: list[Choice]
    seconds: float
    adapters: dict[str, Adapter] = field(default_factory=dict)

    def add_adapter(self, directory: Path, name: str | None = None) -> str:
        """Load a LoRA directory over the same base weights; return its name (the directory's, unless given)."""
        adapter = load_adapter(directory, self.config, self.transformer.dtype, self.transformer.device)
        self.adapters[name or adapter.name] = adapter
        return name or adapter.name


def load(
    spec: str | None = None,
    adapter: Path | str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    *,
    quiet: bool = False,
) -> LoadedModel:
    """Load a model; arguments left out come from the environment (shared/config.py).

    spec: catalog name, directory, or Hub id with optional @revision. device: auto, cpu, cuda, mps.
    dtype: auto, float32, bfloat16, or weight-only int8, int4. quiet: do not print the choices on stderr.
    Raises UserError with the fix for anything that is missing, broken or not supported here.
    """
    config = settings()
    spec = spec or config.model
    adapter = adapter or config.adapter
    directory = resolve(spec)
    start = time.perf_counter()
    chosen_device = choose_device(device or config.device)
    chosen_dtype = choose_dtype(dtype or config.dtype, chosen_device.value, published_int4(directory))
    threads = choose_threads(config.threads)
    torch.set_num_threads(int(threads.value))
    choices = [Choice("model", spec, str(directory)), chosen_device, chosen_dtype, threads]

    shape = read_config(directory)
    tokenizer = ChatTokenizer(directory)
    transformer, notes = _load_weights(directory, shape, torch.device(chosen_device.value), chosen_dtype.value)
    choices += notes
    model = LoadedModel(
        name=Path(spec).name if Path(spec).is_dir() else spec,
        directory=directory,
        config=shape,
        tokenizer=tokenizer,
        transformer=transformer,
        dtype=chosen_dtype.value,  # type: ignore[arg-type]
        choices=choices,
        seconds=0.0,
    )
    if adapter:
        name = model.add_adapter(Path(adapter))
        rank = model.adapters[name].rank
        choices.append(Choice("adapter", name, f"LoRA, rank {rank}, from {adapter}"))
    model.seconds = time.perf_counter() - start
    if not quiet:
        for choice in choices:
            say(f"  {choice.what:<8} {choice.value}  ({choice.reason})")
    return model


def resolve(spec: str) -> Path:
    """Return the Hugging Face directory of a model spec, fetching and converting what is missing."""
    from shared import catalog

    if spec in catalog.load():
        return _from_catalog(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        return path
    if path.exists() or spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        known = ", ".join(catalog.load())
        raise UserError(
            f"MODEL={spec!r}: no such directory. Give a catalog name ({known}), a checkpoint directory, or a Hub id "
            "like org/name@revision"
        )
    from shared.hub import hub_snapshot

    repo, _, revision = spec.partition("@")
    return hub_snapshot(repo, revision or "main")


def _from_catalog(name: str) -> Path:
    """Fetch a catalog model; convert a GGUF artifact once, under a lock so that two processes do it once."""
    from filelock import FileLock

    from shared import artifacts, catalog

    artifact = catalog.find(name)
    source = artifacts.fetch(name)
    if source.is_dir() or isinstance(artifact, catalog.HubRepo):
        return source
    template = Path(__file__).with_name("templates") / artifact.template
    converter = Path(__file__).with_name("gguf_checkpoint.py")
    # A change of the converter or the template makes a new directory, so no stale conversion is ever read.
    key = _digest(source.name, converter.read_bytes(), template.read_bytes())
    target = settings().llm_roadmap_home / "models" / f"{name}-{key}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target) + ".lock"):
            if not target.exists():
                from shared.gguf_checkpoint import convert

                say(f"converting {source.name} to a Hugging Face directory, once …")
                convert(source, target, template.read_text())
    return target


def _digest(*parts: str | bytes) -> str:
    import hashlib

    return hashlib.sha256(b"\0".join(p.encode() if isinstance(p, str) else p for p in parts)).hexdigest()[:8]


def published_int4(directory: Path) -> bool:
    """Whether the checkpoint came quantised, so that int4 is what its authors published and loses nothing further."""
    return (directory / "quantized.safetensors").exists()


def choose_device(asked: str) -> Choice:
    """Pick cuda, mps or cpu. Raises UserError when the one asked for is not there."""
    present: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if asked == "auto":
        found = next(name for name in ("cuda", "mps", "cpu") if present[name]())
        return Choice("device", found, "best one here" if found != "cpu" else "no CUDA or Apple GPU found")
    if asked not in present:
        raise UserError(f"DEVICE={asked!r}: use auto, cpu, cuda or mps")
    if not present[asked]():
        raise UserError(f"DEVICE={asked}: not available on this machine; use DEVICE=auto")
    return Choice("device", asked, "asked for")


def choose_dtype(asked: str, device: str, published: bool) -> Choice:
    """Pick the weight dtype. published: the checkpoint carries int4 blocks of its own."""
    if asked not in ("auto", "float32", "bfloat16", "int8", "int4"):
        raise UserError(f"DTYPE={asked!r}: use auto, float32, bfloat16, int8 or int4")
    if asked != "auto":
        return Choice("dtype", asked, "asked for")
    if device != "cpu":
        return Choice("dtype", "bfloat16", "the GPU's native format")
    if published:
        return Choice("dtype", "int4", "the published weights are Q4_1: fastest to decode, nothing rounded twice")
    if cpu_has_fast_bfloat16():
        return Choice("dtype", "bfloat16", "this CPU multiplies bfloat16 in hardware")
    return Choice("dtype", "float32", "this CPU has no bfloat16 arithmetic, float32 is faster")


def cpu_has_fast_bfloat16() -> bool:
    """Whether bfloat16 matrix products run in hardware (AVX-512 BF16, AMX); without, they are slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def choose_threads(asked: int | None) -> Choice:
    """One thread per core this process may use: more only contend for the same memory bandwidth."""
    if asked:
        return Choice("threads", str(asked), "asked for")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(allowed, torch.get_num_threads())
    return Choice("threads", str(count), "cores this process may use")


def _load_weights(
    directory: Path, config: ModelConfig, device: torch.device, dtype: str
) -> tuple[Transformer, list[Choice]]:
    """Read safetensors into a Transformer; return it with the choices made on the way."""
    weights = _Checkpoint(directory)
    notes: list[Choice] = []
    if dtype in ("int8", "int4"):
        # Norms, attention and everything between the products stay float32: they are small, and exact.
        compute = torch.float32 if device.type == "cpu" else torch.bfloat16
        dense = _dense_dtype(config, device, notes)
        sample = QuantizedMatrix("q4_1" if dtype == "int4" else "q8_0", torch.zeros(32, 20 if dtype == "int4" else 34,
                                 dtype=torch.uint8, device=device))  # fmt: skip
        notes.append(Choice("kernel", sample.kernel, native.library()[1]))

        def matrix(*names: str) -> Matrix:
            return _quantized(weights, names, dtype, device, dense)
    else:
        compute = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]

        def matrix(*names: str) -> Matrix:
            weight = torch.cat([weights.get(f"{name}.weight") for name in names])
            return DenseMatrix(weight.to(device, compute), weights.bias(names, device, compute))

    def vector(name: str) -> Tensor:
        return weights.get(name).to(device, compute)

    def optional(name: str) -> Tensor | None:
        return vector(name) if name in weights else None

    try:
        layers = []
        for i in range(config.layers):
            prefix = f"model.layers.{i}."
            fused = {key: matrix(*(prefix + name for name in names)) for key, names in FUSED.items()}
            layers.append(
                Layer(
                    attention_norm=vector(prefix + "input_layernorm.weight"),
                    mlp_norm=vector(prefix + "post_attention_layernorm.weight"),
                    query_norm=optional(prefix + "self_attn.q_norm.weight"),
                    key_norm=optional(prefix + "self_attn.k_norm.weight"),
                    **fused,
                )
            )
        embedding = _embedding(weights, "model.embed_tokens", matrix, dtype)
        tied = config.tied_head or "lm_head.weight" not in weights
        head = embedding if tied else _embedding(weights, "lm_head", matrix, dtype)
        _check_shapes(config, embedding, layers, head)
        return Transformer(config, embedding, layers, vector("model.norm.weight"), head, compute), notes
    except KeyError as error:
        raise UserError(f"{directory}: the checkpoint has no tensor {error}") from None
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{directory}: the weights do not fit config.json: {error}") from None


def _check_shapes(config: ModelConfig, embedding: Matrix, layers: list[Layer], head: Matrix) -> None:
    """Raise ValueError when a matrix is not what config.json says; most would otherwise fail late, or not at all."""
    heads = config.heads * config.head_dim
    expected = {
        "qkv": (heads + 2 * config.kv_heads * config.head_dim, config.hidden),
        "output": (config.hidden, heads),
        "gate_up": (2 * config.mlp, config.hidden),
        "down": (config.hidden, config.mlp),
    }
    found = {(name, getattr(layer, name)) for layer in layers for name in expected}
    for name, matrix in [*found, ("embedding", embedding), ("head", head)]:
        shape = expected.get(name, (config.vocabulary, config.hidden))
        if (matrix.out_features, matrix.in_features) != shape:
            raise ValueError(f"{name} is {matrix.out_features}×{matrix.in_features}, expected {shape[0]}×{shape[1]}")


def _embedding(weights: "_Checkpoint", name: str, matrix: Callable[..., Matrix], dtype: str) -> Matrix:
    """Embedding and head: int8 even with int4, as published GGUFs have it; four bits cost too much accuracy there."""
    if dtype not in ("int8", "int4"):
        return matrix(name)
    blocks = weights.blocks(name, "q8_0")
    if blocks is None:
        blocks = quantize_q8_0(weights.get(f"{name}.weight"))
    return QuantizedMatrix("q8_0", blocks)


def _quantized(
    weights: "_Checkpoint", names: tuple[str, ...], dtype: str, device: torch.device, dense: torch.dtype | None
) -> QuantizedMatrix:
    """One fused quantised matrix: published blocks where the checkpoint has them, otherwise rounded here."""
    kind, quantize, dequantize = (
        ("q4_1", quantize_q4_1, dequantize_q4_1) if dtype == "int4" else ("q8_0", quantize_q8_0, dequantize_q8_0)
    )
    floats: Tensor | None = None
    published = [weights.blocks(name, kind) for name in names]
    if dense is not None or any(b is None for b in published):
        floats = torch.cat([weights.get(f"{name}.weight") for name in names])
    if all(b is not None for b in published):
        blocks = torch.cat([b for b in published if b is not None])
    else:
        assert floats is not None
        blocks = quantize(floats)
        floats = dequantize(blocks)  # prefill must see the same rounded weights as decoding
    bias = weights.bias(names, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    copy = floats.to(device, dense) if dense is not None and floats is not None else None
    return QuantizedMatrix(kind, blocks.to(device), bias, copy)


def _dense_dtype(config: ModelConfig, device: torch.device, notes: list[Choice]) -> torch.dtype | None:
    """In what format quantised matrices keep a dense copy for prefill; None when it would take 1/4 of free memory."""
    if device.type != "cpu":
        return None
    dense = torch.bfloat16 if cpu_has_fast_bfloat16() else torch.float32
    per_layer = config.hidden * (config.heads + config.kv_heads) * 2 * config.head_dim + 3 * config.hidden * config.mlp
    size = config.layers * per_layer * dense.itemsize
    if size > available_memory() / 4:
        notes.append(Choice("prefill", "quantised", f"a dense copy would take {size / 1e9:.1f} GB"))
        return None
    notes.append(
        Choice(
            "prefill",
            str(dense).removeprefix("torch."),
            f"dense copy, {size / 1e6:.0f} MB, from {DENSE_FROM_ROWS} rows",
        )
    )
    return dense


def available_memory() -> int:
    """Bytes of memory that can be used without swapping; half of all where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 8 << 30


class _Checkpoint:
    """Tensors by name from the safetensors files of a directory, memory-mapped."""

    def __init__(self, directory: Path) -> None:
        from safetensors import SafetensorError, safe_open

        files = sorted(directory.glob("model*.safetensors"))
        if not files:
            raise UserError(f"{directory} has no model*.safetensors; other weight formats are not read")
        if published_int4(directory):
            files.append(directory / "quantized.safetensors")
        self._where = {}
        for path in files:
            try:
                handle = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise UserError(f"{path} is damaged ({error}); fetch or save it again") from None
            self._where.update(dict.fromkeys(handle.keys(), handle))

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def blocks(self, name: str, kind: str) -> Tensor | None:
        key = f"{name}.weight.{kind}"
        return self.get(key) if key in self else None

    def bias(self, names: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> Tensor | None:
        present = [f"{name}.bias" for name in names if f"{name}.bias" in self]
        return torch.cat([self.get(key) for key in present]).to(device, dtype) if present else None


assert GROUP == 32  # the block sizes written out above
