"""From a name to a model ready to run: find the checkpoint, choose device and dtype with reasons, load the weights.

    MODEL=smollm2-135m            a name in shared/catalog.toml (GGUF is converted once, then reused)
    MODEL=./my-model              a Hugging Face checkpoint directory
    MODEL=org/name@revision       the Hub, or a mirror of it (HF_ENDPOINT)

What was chosen and why is said on stderr.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from shared.config import DType, settings
from shared.errors import UserError
from shared.lora import Adapter, load_adapter
from shared.model_config import ModelConfig, read_config
from shared.provenance import cpu_has_fast_bfloat16
from shared.terminal import say
from shared.tokenizer import ChatTokenizer
from shared.transformer import Transformer
from shared.weights import Choice, load_weights, published_int4


@dataclass
class LoadedModel:
    """A model in memory. adapters: name → LoRA over the same base weights."""

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
        """Load a LoRA directory over the same base weights; return its name (the directory's, unless given).

        Raises UserError when that name is taken, or as load_adapter does.
        """
        name = name or directory.resolve().name
        if not name or name == self.name or name in self.adapters:
            raise UserError(f"adapter {directory}: the name {name!r} is taken; rename the directory")
        self.adapters[name] = load_adapter(directory, self.config, self.transformer.dtype, self.transformer.device)
        return name


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
    transformer, notes = load_weights(directory, shape, torch.device(chosen_device.value), chosen_dtype.value)
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
            say(f"  {choice.what:<8} {choice.value}  ({choice.reason})", indent=11)
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


def choose_threads(asked: int | None) -> Choice:
    """One thread per core this process may use: more only contend for the same memory bandwidth."""
    if asked:
        return Choice("threads", str(asked), "asked for")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(allowed, torch.get_num_threads())
    return Choice("threads", str(count), "cores this process may use")
