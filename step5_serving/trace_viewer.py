"""A local trace viewer: Arize Phoenix, in an environment of its own.

    python -m step5_serving.trace_viewer              # make step5-trace: installs it once, then shows it on :6006
    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:6006 python -m step5_serving serve

Why Phoenix: it is one Python package with receiver, storage and page (Jaeger and Grafana Tempo are programs or
containers to fetch elsewhere), takes OTLP over HTTP, and shows OpenTelemetry's GenAI attributes as its own:
model, settings, tokens. Why apart: a hundred packages (650 MB) that nothing here needs, under the Elastic License 2.0,
which allows this use; no other part of the project depends on it. Its usage statistics are switched off.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import UserError
from shared.terminal import run, say
from step5_serving.database import home

VERSION = "20.26.1"


def environment_of(folder: Path) -> Path:
    """Return the folder of a virtual environment with Phoenix in it, making it the first time.

    Raises UserError when the packages cannot be installed.
    """
    done = folder / "complete"
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted one
    say(f"installing Arize Phoenix {VERSION} into {folder}, once: about a minute and 650 MB")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(program(folder, "python"))
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    installer = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    installed = subprocess.run(
        [*installer, f"arize-phoenix=={VERSION}"], env=os.environ | uv_settings(), capture_output=True, text=True
    )
    if installed.returncode != 0:
        raise UserError(
            f"Arize Phoenix could not be installed: {(installed.stderr or installed.stdout).strip()[-500:]}",
            exit_code=1,
        )
    done.touch()
    return folder


def uv_settings() -> dict[str, str]:
    """What pip is told about indexes and certificates, for uv, which does not read it; as scripts/setup.sh does."""
    found = {}
    for setting, variable in (
        ("index-url", "UV_DEFAULT_INDEX"),
        ("extra-index-url", "UV_INDEX"),
        ("cert", "SSL_CERT_FILE"),
    ):
        value = os.environ.get(f"PIP_{setting.upper().replace('-', '_')}")
        if value is None:
            command = [sys.executable, "-m", "pip", "config", "get", f"global.{setting}"]
            value = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        words = [word for word in value.split() if setting == "cert" or word.startswith("http")]
        if words and variable not in os.environ:
            found[variable] = " ".join(words)
    return found


def program(folder: Path, name: str) -> Path:
    """A program of a virtual environment."""
    return folder / "Scripts" / f"{name}.exe" if os.name == "nt" else folder / "bin" / name


def viewer_environment(data: Path, port: int) -> dict[str, str]:
    """Phoenix's settings: this machine only, its database in `data`, and nothing sent or fetched elsewhere."""
    return {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(port + 1),
        "PHOENIX_WORKING_DIR": str(data),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
    }


def main(
    port: Annotated[int, typer.Option(min=1024, max=65534, help="Port of the page and of OTLP over HTTP.")] = 6006,
) -> None:
    """Show traces in the browser until Ctrl-C."""
    folder = environment_of(home() / f"phoenix-{VERSION}")
    data = home() / "traces"
    data.mkdir(parents=True, exist_ok=True)
    say(f"traces on http://127.0.0.1:{port}; in another terminal:")
    say(f"  OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:{port} make step5")
    command = [str(program(folder, "phoenix")), "serve"]
    process = subprocess.Popen(command, env=os.environ | viewer_environment(data, port))
    try:
        code = process.wait()
    except KeyboardInterrupt:  # it has got the signal as well
        code = process.wait() and 0
    raise SystemExit(code)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    run(app)
