"""Engine events to OpenAI's response objects, whole or in chunks.

A writer sees every event once. It returns the stream chunks that the event makes and remembers what the final
document needs, so that both forms of an answer come from one place and cannot disagree.
"""

import base64
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from shared.openai_protocol import ChatRequest, CompletionRequest, EmbeddingRequest, GenerationRequest
from shared.tokenizer import ChatTokenizer
from shared.tool_calls import ToolCall, ToolCallParser

if TYPE_CHECKING:
    import numpy as np

    from shared.generation import Event, Generation, TokenLogprob

    _Scored = tuple[int, TokenLogprob | None, int]  # token id, log-probabilities, where its text begins


class Writer(Protocol):
    """Turns events into one response."""

    def write(self, index: int, generation: "Generation", event: "Event") -> list[dict[str, Any]]:
        """Take an event of answer `index`; return the stream chunks it makes."""
        ...

    def last_chunks(self) -> list[dict[str, Any]]:
        """Chunks after the last event (usage, when asked for)."""
        ...

    def document(self) -> dict[str, Any]:
        """The whole response, after the last event."""
        ...


class Usage:
    """Token counts of one HTTP request. A prompt that is answered n times counts once, as OpenAI counts it."""

    def __init__(self, answers_per_prompt: int) -> None:
        self._answers = answers_per_prompt
        self.prompt = self.completion = self.cached = 0

    def add(self, index: int, generation: "Generation") -> None:
        """Count a finished generation."""
        if index % self._answers == 0:
            self.prompt += len(generation.request.prompt)
            self.cached += generation.cached_tokens
        self.completion += len(generation.output)

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class _Envelope:
    """id, time and model, the same in every chunk and in the document."""

    def __init__(self, body: GenerationRequest, prefix: str, kind: str) -> None:
        self.fields = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        self.kind = kind
        self.wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        self.wants_running_usage = self.wants_usage and bool(
            body.stream_options and body.stream_options.continuous_usage_stats
        )

    def chunk(self, choices: list[dict[str, Any]], suffix: str = "", **more: Any) -> dict[str, Any]:
        return {**self.fields, "object": self.kind + suffix, "choices": choices, **more}


@dataclass
class _ChatAnswer:
    parser: ToolCallParser
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    started: bool = False


class ChatWriter:
    """chat.completion and chat.completion.chunk."""

    def __init__(self, body: ChatRequest, tokenizer: ChatTokenizer, answers: int, tools: bool) -> None:
        self._envelope = _Envelope(body, "chatcmpl", "chat.completion")
        self._tokenizer, self._tools, self._wants_logprobs = tokenizer, tools, bool(body.logprobs)
        self._parallel = body.parallel_tool_calls is not False
        self._answers = [_ChatAnswer(ToolCallParser()) for _ in range(answers)]
        self._usage = Usage(answers)

    def write(self, index: int, generation: "Generation", event: "Event") -> list[dict[str, Any]]:
        """See Writer."""
        answer = self._answers[index]
        logprobs: dict[str, Any] | None = None
        if event.logprob is not None:
            entry = _chat_logprob(self._tokenizer, event.logprob)
            logprobs = {"content": [entry], "refusal": None}
            answer.logprobs.append(entry)
        pieces: list[str | ToolCall] = answer.parser.feed(event.text) if self._tools else [event.text]
        if event.finish is not None:
            pieces += answer.parser.close()
            called = answer.calls or any(isinstance(p, ToolCall) for p in pieces)
            answer.finish = "tool_calls" if called and event.finish == "stop" else event.finish
            self._usage.add(index, generation)

        deltas: list[dict[str, Any]] = []
        for piece in pieces:
            if isinstance(piece, ToolCall):
                if answer.calls and not self._parallel:
                    continue
                deltas.append({"tool_calls": [{"index": len(answer.calls), **piece.as_message()}]})
                answer.calls.append(piece)
            elif piece:
                deltas.append({"content": piece})
                answer.text += piece
        if not answer.started:
            answer.started = True
            deltas.insert(0, {"role": "assistant", "content": ""})
        if not deltas and (event.finish or logprobs):
            deltas.append({})
        chunks = [self._chunk(index, delta, None, None) for delta in deltas]
        if chunks:
            chunks[-1]["choices"][0] |= {"logprobs": logprobs, "finish_reason": answer.finish}
        if self._envelope.wants_running_usage:
            running = Usage(1)
            running.add(0, generation)
            for chunk in chunks:
                chunk["usage"] = running.as_dict()
        return chunks

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._envelope.chunk([choice], ".chunk")

    def last_chunks(self) -> list[dict[str, Any]]:
        """See Writer."""
        return [self._envelope.chunk([], ".chunk", usage=self._usage.as_dict())] if self._envelope.wants_usage else []

    def document(self) -> dict[str, Any]:
        """See Writer."""
        choices = []
        for index, answer in enumerate(self._answers):
            message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
            if answer.calls:
                message["content"] = answer.text.strip() or None
                message["tool_calls"] = [call.as_message() for call in answer.calls]
            logprobs = {"content": answer.logprobs, "refusal": None} if self._wants_logprobs else None
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish})
        return self._envelope.chunk(choices, usage=self._usage.as_dict())


class CompletionWriter:
    """text_completion, with OpenAI's flat logprobs object; echo puts the prompt and its logprobs in front."""

    def __init__(self, body: CompletionRequest, tokenizer: ChatTokenizer, answers: int) -> None:
        self._envelope = _Envelope(body, "cmpl", "text_completion")
        self._tokenizer, self._echo, self._wants_logprobs = tokenizer, bool(body.echo), body.logprobs is not None
        self._texts = [""] * answers
        self._tokens: list[list[_Scored]] = [[] for _ in range(answers)]
        self._stream = [tokenizer.stream() for _ in range(answers)]  # where in the text each token begins
        self._length = [0] * answers
        self._finish: list[str | None] = [None] * answers
        self._usage = Usage(body.n or 1)
        self._started: set[int] = set()
        self._max_tokens = body.max_tokens

    def write(self, index: int, generation: "Generation", event: "Event") -> list[dict[str, Any]]:
        """See Writer."""
        text, tokens = "", []
        if index not in self._started:
            self._started.add(index)
            if self._echo:
                prompt = generation.request.prompt
                text = self._tokenizer.decode(prompt)
                scored = [None, *generation.prompt_logprobs] if self._wants_logprobs else []
                tokens += [self._place(index, token, s) for token, s in zip(prompt, scored, strict=False)]
        # max_tokens 0 is how evaluation harnesses ask for the prompt's log-probabilities alone.
        if self._max_tokens != 0:
            text += event.text
            if event.token is not None and event.logprob is not None:
                tokens.append(self._place(index, event.token, event.logprob))
        self._texts[index] += text
        self._tokens[index] += tokens
        self._finish[index] = event.finish
        if event.finish is not None:
            self._usage.add(index, generation)
            if self._max_tokens == 0:
                self._usage.completion -= len(generation.output)
        if not (text or tokens or event.finish):
            return []
        return [self._envelope.chunk([self._choice(index, text, tokens, event.finish)])]

    def _place(self, index: int, token: int, scored: "TokenLogprob | None") -> "_Scored":
        begin = self._length[index]
        self._length[index] += len(self._stream[index](token))
        return token, scored, begin

    def _choice(self, index: int, text: str, tokens: "list[_Scored]", finish: str | None) -> dict[str, Any]:
        logprobs = _flat_logprobs(self._tokenizer, tokens) if self._wants_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def last_chunks(self) -> list[dict[str, Any]]:
        """See Writer."""
        return [self._envelope.chunk([], usage=self._usage.as_dict())] if self._envelope.wants_usage else []

    def document(self) -> dict[str, Any]:
        """See Writer."""
        choices = [self._choice(i, text, self._tokens[i], self._finish[i]) for i, text in enumerate(self._texts)]
        return self._envelope.chunk(choices, usage=self._usage.as_dict())


def embedding_response(body: EmbeddingRequest, vectors: "np.ndarray", tokens: int) -> dict[str, Any]:
    """The list of embeddings; base64 (the official client's default) is little-endian float32."""

    def encode(vector: "np.ndarray") -> Any:
        if body.encoding_format == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return vector.tolist()

    data = [{"object": "embedding", "index": i, "embedding": encode(vector)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": body.model, "data": data, "usage": usage}


def _chat_logprob(tokenizer: ChatTokenizer, scored: "TokenLogprob") -> dict[str, Any]:
    entry = _token_entry(tokenizer, scored.token, scored.logprob)
    entry["top_logprobs"] = [_token_entry(tokenizer, token, logprob) for token, logprob in scored.top]
    return entry


def _token_entry(tokenizer: ChatTokenizer, token: int, logprob: float) -> dict[str, Any]:
    # JSON has no infinity; a token that a grammar or the model rules out gets OpenAI's own stand-in.
    return {
        "token": tokenizer.piece(token),
        "logprob": max(logprob, -9999.0),
        "bytes": list(tokenizer.token_bytes[token]) if token < len(tokenizer.token_bytes) else None,
    }


def _flat_logprobs(tokenizer: ChatTokenizer, tokens: "list[_Scored]") -> dict[str, Any]:
    return {
        "tokens": [tokenizer.piece(token) for token, _, _ in tokens],
        "token_logprobs": [None if s is None else max(s.logprob, -9999.0) for _, s, _ in tokens],
        "top_logprobs": [
            None if s is None else {tokenizer.piece(t): max(p, -9999.0) for t, p in s.top} for _, s, _ in tokens
        ],
        "text_offset": [begin for _, _, begin in tokens],
    }
