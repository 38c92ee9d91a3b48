"""One way to reach a model: an OpenAI-compatible base URL, wherever it is.

OPENAI_BASE_URL set: that endpoint. Not set: the embedded engine, started in this process on a loopback port.
So `openai`, `langchain-openai`, `curl` and everything else that speaks the protocol work the same way with both.

    with connect() as endpoint:
        client = openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
        client.chat.completions.create(model=endpoint.model, messages=[…])
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.config import settings
from shared.errors import UserError
from shared.terminal import say

if TYPE_CHECKING:
    from openai import AsyncStream

    from shared.engine import Engine


PUBLISHED = Path(__file__).parent / "adapters"


@dataclass(frozen=True)
class Endpoint:
    """Where requests go. model: the name to put into requests. engine: the embedded one, None for a remote endpoint.

    base: the model, or the one that this adapter is for, as far as the endpoint's list tells.
    """

    base_url: str
    api_key: str
    model: str
    reason: str
    engine: "Engine | None" = None
    base: str = ""


@contextmanager
def connect(
    model: str | None = None, adapters: Sequence[Path] = (), *, role: str | None = None, quiet: bool = False
) -> Iterator[Endpoint]:
    """Yield an endpoint; an embedded engine lives as long as the block does.

    model: what to load or which served name to use (default: MODEL). adapters: LoRA directories to load as model
    names of their own; a remote endpoint has its own list. quiet: no remarks on stderr.
    role: the published adapter (step 4) that the caller's work is made for, "tools" or "grader". Where nobody names
    another model, it is the one that answers: loaded from shared/adapters by the embedded engine when it was trained
    on the model in use, and by its name on a remote endpoint that lists it.
    Raises UserError when a remote endpoint does not answer, or refuses the key or the model.
    """
    config = settings()
    if config.openai_base_url:
        key = config.openai_api_key.get_secret_value() if config.openai_api_key else "unused"
        chosen = model or (config.model if "model" in config.model_fields_set else None)
        endpoint = _remote(config.openai_base_url.rstrip("/"), key, chosen, role)
        if not quiet:
            say(f"  endpoint {endpoint.base_url} model {endpoint.model}  ({endpoint.reason})")
        yield endpoint
        return

    from shared.engine import load_engine
    from shared.openai_server import serve

    published = None if model or config.adapter else published_adapter(role, config.model)
    if published and published not in adapters:
        adapters = [*adapters, published]
    engine = load_engine(model, adapters, quiet=quiet)
    with serve(engine) as base_url:
        # ADAPTER asks for the adapted model, and so does a role; `adapters` are there to be chosen by name.
        adapter = config.adapter.resolve() if config.adapter else published
        chosen = adapter.name if adapter else engine.model.name
        if published and not quiet:
            say(f"  adapter  {published.name}  (trained for this, step 4; --model {engine.model.name} leaves it out)")
        reason = "OPENAI_BASE_URL is not set: embedded engine"
        yield Endpoint(base_url, "unused", chosen, reason, engine, engine.model.name)


def published_adapter(role: str | None, model: str) -> Path | None:
    """The adapter in shared/adapters for a role, or None: not there, or trained on another model than this one."""
    directory = PUBLISHED / str(role)
    try:
        trained_on = json.loads((directory / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError):
        return None
    return directory if trained_on == model else None


def _remote(base_url: str, key: str, chosen: str | None, role: str | None) -> Endpoint:
    import httpx

    try:
        response = httpx.get(f"{base_url}/models", headers={"authorization": f"Bearer {key}"}, timeout=10)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(
            f"OPENAI_BASE_URL={base_url} does not answer ({error}); start it, or unset the variable to use the "
            "embedded engine",
            exit_code=1,
        ) from None
    if response.status_code in (401, 403):
        raise UserError(f"{base_url} refuses the key: set OPENAI_API_KEY", exit_code=1)
    try:
        # vLLM, and our own servers, say by `parent` which model an adapter is for.
        cards = response.raise_for_status().json()["data"]
        bases = {card["id"]: card.get("parent") or card["id"] for card in cards}
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError, AttributeError):
        bases = {}  # an endpoint without a usable model list is legal; the first request will tell
    reason = "OPENAI_BASE_URL"
    if chosen is None and role in bases:
        chosen, reason = role, f"OPENAI_BASE_URL; it lists an adapter {role}"
    if chosen is None:
        if not bases:
            raise UserError(f"{base_url} lists no models: name one with MODEL or --model")
        chosen, reason = next(iter(bases)), "OPENAI_BASE_URL; first model it lists"
    if bases and chosen not in bases:
        raise UserError(f"{base_url} does not serve {chosen!r}; it lists {', '.join(list(bases)[:8])}")
    return Endpoint(base_url, key, chosen, reason, base=bases.get(chosen, ""))


async def hang_up(stream: "AsyncStream[Any]") -> None:
    """Stop reading an answer in the middle: close its connection, which makes the server stop generating, and end
    its generators here.

    A loop that is only left leaves several of them suspended, in a cycle. The garbage collector then ends them in
    whatever thread it runs, and beside an embedded engine that prints "async generator already executing".
    """
    await stream.close()
    with suppress(Exception):  # what reading from a closed connection raises is the transport's business
        async for _ in stream:
            pass
