"""Where a number came from: the machine, the package versions, the commit.

A speed without its CPU or a score without its library version cannot be checked by anybody else, so
`shared.results.write_results` stores all three beside every measurement.

    python -c "from shared.provenance import *; print(hardware(), versions('torch'), git_revision())"
"""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def _cpu() -> tuple[str, int, str]:
    """Return the CPU's model name, the physical cores this process may use, and its widest vector instruction set."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        name = platform.processor() or platform.machine()
        if sys.platform == "darwin":
            name = output_of(["sysctl", "-n", "machdep.cpu.brand_string"]) or name
        return name, threads, "unknown"
    processors = [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        for block in cpuinfo.read_text().strip().split("\n\n")
    ]
    allowed = os.sched_getaffinity(0)
    # Hyper-threads share (socket, core); where the file does not say (ARM), each processor counts as one core.
    cores = {
        (cpu.get("physical id"), cpu.get("core id", cpu["processor"]))
        for cpu in processors
        if "processor" in cpu and int(cpu["processor"]) in allowed
    }
    flags = set(f"{processors[0].get('flags', '')} {processors[0].get('Features', '')}".split())
    # Widest first; the bf16 kinds decide whether bfloat16 products run in hardware.
    known = {"amx_bf16": "amx_bf16", "avx512_bf16": "avx512_bf16", "avx512f": "avx512", "avx2": "avx2"}
    known |= {"sve": "sve", "asimd": "neon"}
    instructions = next((label for flag, label in known.items() if flag in flags), "unknown")
    return processors[0].get("model name") or platform.machine(), len(cores) or threads, instructions


def cpu_has_fast_bfloat16() -> bool:
    """Whether bfloat16 matrix products run in hardware (AVX-512 BF16, AMX); without, they are slower than float32.

    Without torch, so that a process that only starts others can ask. Where /proc/cpuinfo is not, torch is asked if it
    is imported already.
    """
    instructions, torch = _cpu()[2], sys.modules.get("torch")
    if instructions == "unknown" and torch is not None:
        return bool(torch.cpu._is_avx512_bf16_supported())
    return instructions in ("amx_bf16", "avx512_bf16")


def hardware() -> dict[str, Any]:
    """Return cpu, cores (physical, usable by this process), memory_gib, instruction_set, os, and any gpu.

    torch is asked only when it is imported already; a program that did not import it did not use a GPU through it.
    """
    name, cores, instructions = _cpu()
    torch = sys.modules.get("torch")
    if instructions == "unknown" and torch is not None:
        instructions = torch.backends.cpu.get_cpu_capability().lower()
    found: dict[str, Any] = {
        "cpu": name,
        "cores": cores,
        "memory_gib": None,
        "instruction_set": instructions,
        "os": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
    }
    if hasattr(os, "sysconf"):
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    elif torch is not None and torch.backends.mps.is_available():
        found["gpu"] = "Apple GPU (mps)"
    return found


def versions(*packages: str) -> dict[str, str]:
    """Return Python's version and that of each package; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def output_of(command: list[str], cwd: Path | None = None) -> str | None:
    """Return a program's standard output, or None when it is missing or fails."""
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def git_revision() -> str:
    """Return this code's short commit hash, with "+dirty" when code differs from it; "unknown" outside git.

    Results and Markdown files do not count as code: else every second benchmark of a day would be dirty.
    """
    here = Path(__file__).resolve().parents[1]
    revision = output_of(["git", "rev-parse", "--short", "HEAD"], here)
    if not revision:
        return "unknown"
    changes = output_of(
        ["git", "status", "--porcelain", "--", ":/", ":(exclude,top)*/results/*.json", ":(exclude,top)*.md"], here
    )
    return revision if changes == "" else f"{revision}+dirty"


def tracked_files(root: Path, pattern: str) -> list[Path]:
    """The files below `root` that git tracks or would add; outside git all that match but those in hidden folders.

    pattern: as in .gitignore, e.g. "*.md".
    """
    listed = output_of(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern], root)
    if listed is None:
        found = [path for path in root.rglob(pattern) if not any(p[0] == "." for p in path.relative_to(root).parts)]
    else:
        found = [root / name for name in listed.split("\0") if name]
    return sorted(path for path in set(found) if path.is_file())
