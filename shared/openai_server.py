"""OpenAI's HTTP API over the embedded engine: any OpenAI client works against it, on this machine, offline.

    python -m shared.openai_server --port 8000
    curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
         -d '{"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hello"}]}'

Loaded adapters appear as model names of their own. The routes are in openai_app.py.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import UserError
from shared.terminal import run, say

if TYPE_CHECKING:
    from shared.engine import Engine


@contextmanager
def serve(engine: "Engine") -> Iterator[str]:
    """Serve an engine on a free loopback port from a thread of this process; yield its base URL."""
    import uvicorn

    from shared.openai_app import create_app

    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(engine), log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="openai-server", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise UserError("the embedded server did not start", exit_code=1)
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raises UserError when the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches Nagle's algorithm off only on sockets that say TCP; with it on,
    # every response would wait 40 ms for a delayed acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    return bound


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


cli = typer.Typer(add_completion=False, rich_markup_mode=None)


@cli.command(epilog="Example: python -m shared.openai_server --port 8000 --adapter ./my-lora")
def command(
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback needs --api-key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8000,
    model: Annotated[str | None, typer.Option(help="Catalog name, directory or Hub id. [default: $MODEL]")] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="LoRA directory, served under its name; repeatable.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps. [default: $DEVICE]")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, int8 or int4. [default: $DTYPE]")] = None,
    api_key: Annotated[str | None, typer.Option(help="Require this bearer token.", envvar="SERVER_API_KEY")] = None,
) -> None:
    """Serve the embedded engine as an OpenAI-compatible API until Ctrl-C."""
    import uvicorn

    from shared.engine import load_engine
    from shared.openai_app import create_app

    if not is_loopback(host) and not api_key:
        raise UserError(f"--host {host} is reachable from other machines: give --api-key as well")
    listener = listen(host, port)  # before loading: a taken port should not cost the wait
    engine = load_engine(model, adapter or [], device, dtype)
    say(
        f"serving {', '.join([engine.model.name, *engine.model.adapters])} on http://{host}:{listener.getsockname()[1]}/v1"
    )
    config = uvicorn.Config(create_app(engine, api_key), log_level="warning", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    run(cli)
