"""What loading a model costs: parameters and bytes by component, memory predicted and measured, KV cache, load times.

    python -m step1_foundations load
    python -m step1_foundations load --dtype bfloat16     # the same weights, three times the bytes read per token

Nothing heavy is imported at the top, so that the time of importing torch can be measured apart from our own.
"""

import contextlib
import ctypes
import gc
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from torch import Tensor

    from shared.linear import Matrix
    from shared.models import LoadedModel
    from shared.transformer import Transformer


@dataclass(frozen=True)
class Component:
    """One kind of weights, all layers together.

    prefill_bytes: a second, dense copy for many tokens at once, which quantised models keep where memory allows.
    """

    name: str
    parameters: int
    bytes: int
    prefill_bytes: int


@dataclass(frozen=True)
class LoadReport:
    """Bytes and seconds of one load. Memory is the growth of this process from just before to just after the cold load.

    predicted: weights, copies and rotary tables, by arithmetic. private: memory of our own; mapped: pages of the
    checkpoint file that the system may drop again (both None where the system does not tell them apart).
    import_seconds: importing torch, None if it was imported before. cold: first load in this process (reads the file,
    from the disk unless the system had it cached; binds the native kernel). warm: the same again at once.
    """

    model: str
    directory: str
    choices: list[dict[str, str]]
    components: list[Component]
    parameters: int
    context: int
    kv_bytes_per_token: int
    kv_bytes_full_context: int
    predicted: int
    measured: int
    private: int | None
    mapped: int | None
    import_seconds: float | None
    cold_seconds: float
    warm_seconds: float


def measure_load(
    model: str | None = None,
    adapter: "Path | None" = None,
    device: str | None = None,
    dtype: str | None = None,
    *,
    quiet: bool = False,
) -> LoadReport:
    """Load a model twice and return what it took; arguments as shared.models.load.

    The first copy is released before the second load, so the peak is one model, not two.
    """
    start = time.perf_counter()
    known = "torch" in sys.modules
    import torch  # noqa: F401  (only its time)

    imported = None if known else time.perf_counter() - start
    from shared.config import settings
    from shared.models import load, resolve

    # Fetching and converting happen once per machine and would hide what a load costs.
    resolve(model or settings().model)
    _give_back()  # before and after: neither a conversion just done nor the load's own scratch should count
    before = _memory()
    loaded = load(model, adapter, device, dtype, quiet=quiet)
    _give_back()
    after = _memory()
    private, mapped = (None if a is None or b is None else b - a for a, b in zip(before[1:], after[1:], strict=True))
    config = loaded.config
    per_token = config.kv_bytes_per_token(loaded.transformer.dtype.itemsize)
    parts = components(loaded)
    facts = {
        "model": loaded.name,
        "directory": str(loaded.directory),
        "choices": [choice._asdict() for choice in loaded.choices],
    }
    cold = loaded.seconds
    rope = loaded.transformer.cos.nbytes + loaded.transformer.sin.nbytes
    del loaded
    gc.collect()
    warm = load(model, adapter, device, dtype, quiet=True).seconds
    return LoadReport(
        **facts,  # type: ignore[arg-type]
        components=parts,
        parameters=sum(part.parameters for part in parts),
        context=config.context,
        kv_bytes_per_token=per_token,
        kv_bytes_full_context=per_token * config.context,
        predicted=sum(part.bytes + part.prefill_bytes for part in parts) + rope,
        measured=after[0] - before[0],
        private=private,
        mapped=mapped,
        import_seconds=imported,
        cold_seconds=cold,
        warm_seconds=warm,
    )


def components(model: "LoadedModel") -> list[Component]:
    """Return parameters and bytes of embedding, attention, MLP, norms, head and adapter.

    A tied head is the embedding matrix used a second time: no parameters of its own, no bytes of its own.
    """
    transformer = model.transformer
    layers = transformer.layers
    tied = transformer.head is transformer.embedding
    rows = [
        _component("embedding", [transformer.embedding]),
        _component("attention", [m for layer in layers for m in (layer.qkv, layer.output)]),
        _component("MLP", [m for layer in layers for m in (layer.gate_up, layer.down)]),
        _norms(transformer),
        _component("head (tied to embedding)", []) if tied else _component("head", [transformer.head]),
    ]
    for name, adapter in model.adapters.items():
        tensors = [t for layer in adapter.layers for pair in layer.values() for t in pair]
        rows.append(Component(f"adapter {name}", sum(t.numel() for t in tensors), adapter.nbytes(), 0))
    return rows


def _component(name: str, matrices: "list[Matrix]") -> Component:
    biases: list[Tensor] = [bias for m in matrices if (bias := getattr(m, "bias", None)) is not None]
    return Component(
        name,
        parameters=sum(m.out_features * m.in_features for m in matrices) + sum(b.numel() for b in biases),
        bytes=sum(m.nbytes() for m in matrices) + sum(b.nbytes for b in biases),
        prefill_bytes=sum(m.dense_nbytes() for m in matrices),
    )


def _norms(transformer: "Transformer") -> Component:
    weights = [transformer.norm]
    for layer in transformer.layers:
        weights += [layer.attention_norm, layer.mlp_norm]
        weights += [w for w in (layer.query_norm, layer.key_norm) if w is not None]
    return Component("norms", sum(w.numel() for w in weights), sum(w.nbytes for w in weights), 0)


def _give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _memory() -> tuple[int, int | None, int | None]:
    """Resident bytes of this process: all, private, and mapped from files (the last two on Linux only)."""
    import psutil  # type: ignore[import-untyped]

    info = psutil.Process().memory_info()
    mapped: int | None = getattr(info, "shared", None)
    return info.rss, None if mapped is None else info.rss - mapped, mapped


def size(count: int) -> str:
    """Bytes for people: 98.4 MB (1 MB = 10⁶ bytes)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def print_load(out: "Console", report: LoadReport) -> None:
    """Print the report in 80 columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("component")
    for name in ("parameters", "bytes", "prefill copy"):
        table.add_column(name, justify="right")
    weights, copies = (sum(getattr(part, name) for part in report.components) for name in ("bytes", "prefill_bytes"))
    for part in report.components:
        copy = size(part.prefill_bytes) if part.prefill_bytes else "–"
        table.add_row(part.name, f"{part.parameters:,}", size(part.bytes), copy)
    table.add_row("all", f"{report.parameters:,}", size(weights), size(copies) if copies else "none", style="bold")
    out.print(table)
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    measured = size(report.measured) + " more resident memory after the cold load"
    if report.private is not None and report.mapped is not None:
        measured += (
            f": {size(report.private)} private (weights, tokenizer) + {size(report.mapped)} file pages that the system "
            "may drop"
        )
    imported = "torch was imported already" if report.import_seconds is None else f"{report.import_seconds:.2f} s"
    facts.add_row("\nmemory, predicted", f"\n{size(report.predicted)} (weights, prefill copies, rotary tables)")
    facts.add_row("memory, measured", measured)
    facts.add_row("KV cache", f"{size(report.kv_bytes_per_token)} per token")
    facts.add_row(
        "context length", f"{report.context:,} tokens; a full KV cache takes {size(report.kv_bytes_full_context)}"
    )
    facts.add_row("importing torch", imported)
    facts.add_row("cold load", f"{report.cold_seconds:.2f} s: first in this process, reads the file")
    facts.add_row("warm load", f"{report.warm_seconds:.2f} s: the same again, file in the system's cache")
    for choice in report.choices:
        facts.add_row(choice["what"], Text(f"{choice['value']} ({choice['reason']})"))
    out.print(facts)
