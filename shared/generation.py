"""One request and the answer that grows for it: choosing tokens, stop texts, log-probabilities, events.

The loop that computes logits for many of these at once is shared/engine.py.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from shared.errors import UserError
from shared.grammar import Matcher
from shared.sampling import Sampling, penalize, sample
from shared.transformer import KVCache

FinishReason = Literal["stop", "length", "cancelled", "error"]


class ContextOverflowError(UserError):
    """The request does not fit the model's context window."""


@dataclass(frozen=True)
class Request:
    """One generation. prompt: token ids. adapter: name of a loaded LoRA, or None for the base model.

    max_tokens None: up to the context length. stop: texts that end the answer and are not part of it.
    logprobs: None, or how many alternatives to report beside each chosen token. prompt_logprobs: the same for the
    prompt's own tokens. matcher: grammar state that constrains the output.
    """

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    adapter: str | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    matcher: Matcher | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability under the model (before temperature and filters), and the likeliest alternatives."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Event:
    """What one step did for one request. text may be empty: half a character, or text held back for a stop word."""

    text: str
    token: int | None = None
    logprob: TokenLogprob | None = None
    finish: FinishReason | None = None
    error: str = ""


class Generation:
    """A submitted request. Events arrive on `on_event` from the engine's thread; `cancel` may come from any thread."""

    def __init__(self, request: Request, on_event: Callable[[Event], None], stream: Callable[[int], str]) -> None:
        self.request = request
        self.on_event = on_event
        self.tokens = list(request.prompt)  # the prompt, then the answer as it grows
        self.prompt_logprobs: list[TokenLogprob] = []  # of prompt[1:], when asked for
        self.cached_tokens = 0
        self.cancelled = threading.Event()
        self.cache: KVCache | None = None
        self._generator = request.sampling.generator()
        self._stream = stream
        self._held = ""

    def cancel(self) -> None:
        """Stop computing at the next step; a last event with finish "cancelled" follows."""
        self.cancelled.set()

    @property
    def pending(self) -> list[int]:
        """Tokens that have been decided on but have not been through the model."""
        return self.tokens[self.cache.length if self.cache is not None else 0 :]

    @property
    def output(self) -> list[int]:
        """The answer's tokens so far."""
        return self.tokens[len(self.request.prompt) :]

    def accept(self, logits: Tensor) -> FinishReason | None:
        """Choose the next token from logits [vocabulary], report it, and say whether the answer ends with it."""
        request = self.request
        choices = penalize(logits, request.sampling, request.prompt, self.output)
        if request.matcher is not None:
            choices = request.matcher.mask(choices)
        token = sample(choices, request.sampling, self._generator)
        self.tokens.append(token)
        complete = request.matcher is not None and request.matcher.accept(token)
        logprob = None if request.logprobs is None else token_logprob(logits, token, request.logprobs)

        finish: FinishReason | None = None
        text = ""
        if complete or (token in self.eos and not request.ignore_eos):
            finish = "stop"
        else:
            text, stopped = self._release(self._stream(token))
            if stopped:
                finish = "stop"
            elif request.max_tokens is not None and len(self.output) >= request.max_tokens:
                finish = "length"
        if finish:  # no stop word can complete any more: what was held back for one is text after all
            text, self._held = text + self._held, ""
        self.on_event(Event(text, token, logprob, finish))
        return finish

    eos: tuple[int, ...] = ()

    def _release(self, new: str) -> tuple[str, bool]:
        """Hold back text that may be the beginning of a stop word; return (text that is safe to show, stopped)."""
        text, self._held = self._held + new, ""
        for stop in self.request.stop:
            if (at := text.find(stop)) >= 0:
                return text[:at], True
        longest = max(
            (k for stop in self.request.stop for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0
        )
        if longest:
            text, self._held = text[:-longest], text[-longest:]
        return text, False


def token_logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """Return the log-probability of `token` and of the `top` likeliest tokens under logits [vocabulary]."""
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(top)
    return TokenLogprob(token, float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
