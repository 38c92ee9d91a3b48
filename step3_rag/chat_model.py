"""The model that writes and grades: LangChain's client of whatever endpoint there is, and what is known of it.

The embedded engine or OPENAI_BASE_URL (shared/endpoint.py), the same client for both. What fails there becomes one
sentence that names the fix.

    with connect() as endpoint:
        model = open_chat_model(endpoint)
        model.chat.invoke("Hello")
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.endpoint import Endpoint
from shared.errors import UserError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

TIMEOUT = 120.0  # seconds of silence; the embedded engine reads 512 tokens in about 0.9 s on two laptop-class cores
ASSUMED_CONTEXT = 4096  # tokens, for an endpoint that does not say; five passages take about 1,300


@dataclass(frozen=True)
class ChatModel:
    """chat: the client. context: tokens that prompt and answer may have together. count: tokens of a text.

    count is exact for the embedded engine; for other endpoints it is one per 3 bytes, which is above what current
    tokenizers make of prose in any script, and of most code.
    """

    chat: "BaseChatModel"
    context: int = ASSUMED_CONTEXT
    count: Callable[[str], int] = lambda text: len(text.encode(errors="replace")) // 3 + 1


def open_chat_model(endpoint: Endpoint, name: str | None = None) -> ChatModel:
    """Return the model behind an endpoint. name: another one that it serves, such as an adapter."""
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    chat = ChatOpenAI(
        model=name or endpoint.model,
        base_url=endpoint.base_url,
        api_key=SecretStr(endpoint.api_key),
        timeout=TIMEOUT,
        max_retries=2,
        stream_usage=True,  # LangChain asks for token counts by itself only at OpenAI's own address
    )
    if endpoint.engine is not None:
        loaded = endpoint.engine.model
        return ChatModel(chat, loaded.config.context, lambda text: len(loaded.tokenizer.encode(text)))
    return ChatModel(chat, _context_of(endpoint, name or endpoint.model))


def _context_of(endpoint: Endpoint, name: str) -> int:
    """The model's context as the endpoint lists it. max_model_len is vLLM's and ours; OpenAI does not say."""
    import httpx

    try:
        response = httpx.get(
            f"{endpoint.base_url}/models", headers={"authorization": f"Bearer {endpoint.api_key}"}, timeout=10
        )
        found = {entry["id"]: entry.get("max_model_len") for entry in response.raise_for_status().json()["data"]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return ASSUMED_CONTEXT
    length = found.get(name)
    return length if isinstance(length, int) and length > 0 else ASSUMED_CONTEXT


@contextmanager
def model_errors() -> Iterator[None]:
    """Turn what the client raises inside the block into UserError (exit code 1)."""
    import openai

    try:
        yield
    except openai.APIError as error:
        raise UserError(_sentence(error), exit_code=1) from error
    except ValueError as error:  # LangChain's for a reply without content, json's for an event that is none
        raise UserError(
            f"the endpoint does not answer in OpenAI's form ({str(error)[:100]}); check OPENAI_BASE_URL", exit_code=1
        ) from error


def _sentence(error: Any) -> str:
    import openai

    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return "the endpoint refuses the key: set OPENAI_API_KEY"
    if isinstance(error, openai.APITimeoutError):
        return f"the endpoint was silent for {TIMEOUT:g} s; is it overloaded?"
    if isinstance(error, openai.APIConnectionError):
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return f"the endpoint cannot be reached, or broke off ({cause}); is it running?"
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error", body)
    said = inner.get("message") if isinstance(inner, dict) else None
    status = getattr(error, "status_code", None)
    return f"the endpoint refuses the request{f' ({status})' if status else ''}: {str(said or error.message)[:300]}"
