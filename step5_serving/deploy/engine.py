"""vLLM alone, open to other machines: what an engine's container runs. The gateway reaches it with --engine-url.

    python -m step5_serving.deploy.engine smollm2-135m --port 8000

The command line is launch.py's, so a container's engine is started like one under `serve`. Whoever reaches it can use
it without a key of the gateway's: let only the gateway reach it (compose network, NetworkPolicy), and give it
ENGINE_API_KEY, which the gateway sends. vLLM checks that key on /v1 only, so the network is the real boundary.
"""

import os
from typing import Annotated

import typer

from shared.config import settings
from shared.terminal import run, say
from step5_serving.launch import VLLM_SLOTS, choose_launch


def main(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Catalog name, directory or Hub id.")] = "smollm2-135m",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8000,
    slots: Annotated[int, typer.Option(min=1, help="Requests computed at once; the gateway's --slots.")] = VLLM_SLOTS,
) -> None:
    """Become vLLM's server: the process is replaced, so signals reach it."""
    launch = choose_launch("vllm", model, None, slots=slots, extra=["--host", host, "--port", str(port)])
    key = settings().engine_api_key
    env = os.environ | dict(launch.env) | {"VLLM_API_KEY": key.get_secret_value() if key else ""}
    say(f"engine for {launch.model} on {host}:{port}")
    os.execve(launch.command[0], list(launch.command), env)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    run(app)
