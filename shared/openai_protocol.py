"""The part of OpenAI's HTTP API that the embedded engine speaks, as pydantic models, and its error format.

Fields beyond OpenAI's own (top_k, min_p, repetition_penalty, ignore_eos) are vLLM's, so that a request means the same
on both. Fields not listed are ignored, as vLLM does: clients send new ones every month.
Source: the OpenAI API reference, /v1/chat/completions, /v1/completions, /v1/embeddings.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class ApiError(Exception):
    """An error in OpenAI's shape: {"error": {"message", "type", "param", "code"}} with an HTTP status."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kinds = {401: "authentication_error", 404: "not_found_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Function(BaseModel):
    """A tool the model may call; parameters is a JSON schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool definition."""

    type: Literal["function"]
    function: Function

    def as_prompt(self) -> dict[str, Any]:
        """What the chat template shows to the model: the definition as sent, without empty fields and `strict`."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}


class NamedFunction(BaseModel):
    """The function of a named tool_choice."""

    name: str


class NamedToolChoice(BaseModel):
    """tool_choice that forces one function."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(BaseModel):
    """response_format's schema."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """text, any JSON object, or JSON valid under a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _needs_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type json_schema needs json_schema")
        return self


class StreamOptions(BaseModel):
    """include_usage: a last chunk with the token counts. continuous_usage_stats (vLLM's): counts so far in each chunk,
    for clients that may stop reading before the end."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class GenerationRequest(BaseModel):
    """What chat and plain completion have in common."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    n: int | None = Field(None, ge=1, le=16)
    stop: str | list[str] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool = False

    @field_validator("stop")
    @classmethod
    def _usable(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > 16 or not all(texts):
            raise ValueError("stop takes at most 16 texts, none of them empty")
        return value

    def stop_texts(self) -> tuple[str, ...]:
        """The stop texts, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = True
    response_format: ResponseFormat | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        names = {tool.function.name for tool in self.tools or []}
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedToolChoice) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is not among tools")
        json_asked = self.response_format is not None and self.response_format.type != "text"
        if json_asked and names and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("response_format and a forced tool call exclude each other")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. prompt: text, token ids, or a list of either."""

    prompt: Annotated[str | list[str] | list[int] | list[list[int]], Field(min_length=1)]
    echo: bool | None = False
    logprobs: int | None = Field(None, ge=0, le=20)


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = "float"


def plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as chat templates expect them: content as text, tool-call arguments as objects.

    Raises ApiError for roles, parts or arguments that cannot be turned into that.
    """
    import json

    result = []
    for i, message in enumerate(messages):
        role = message.get("role")
        if role == "developer":  # OpenAI's newer name for the system role
            role = "system"
        if role not in ("system", "user", "assistant", "tool"):
            raise ApiError(f"messages[{i}].role {role!r}: use system, user, assistant or tool", param="messages")
        plain: dict[str, Any] = {**message, "role": role, "content": _text(message.get("content"), i)}
        if message.get("content") is None and role != "assistant":
            raise ApiError(f"messages[{i}].content is missing", param="messages")
        calls = []
        for call in message.get("tool_calls") or []:
            try:
                function = call["function"]
                arguments = function["arguments"]
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
                calls.append({**call, "function": {"name": str(function["name"]), "arguments": arguments}})
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise ApiError(f"messages[{i}].tool_calls: not a valid call ({error})", param="messages") from None
        if calls:
            plain["tool_calls"] = calls
        result.append(plain)
    return result


def _text(content: Any, index: int) -> str:
    """The text of a message's content, which may be a string, nothing, or a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(f"messages[{index}].content: this model takes text only", param="messages")
    return "".join(part["text"] for part in parts)
