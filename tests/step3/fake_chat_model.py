"""A fake chat model: says what a script tells it to. No model is behind it, and no endpoint.

    fake = FakeChat(say=lambda prompt: "Paris is the capital.", yes=lambda prompt: 0.9)
    model = ChatModel(fake, context=4096)

A request for log-probabilities gets those of yes and no; any other gets the script's words, streamed one by one.
"""

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import PrivateAttr


class FakeChat(BaseChatModel):
    """say: prompt → reply. yes: prompt → P(yes). pause: seconds before each word."""

    say: Callable[[str], str] = lambda prompt: "I have no script."
    yes: Callable[[str], float] = lambda prompt: 0.5
    pause: float = 0.0
    _requests: list[tuple[str, dict[str, Any]]] = PrivateAttr(default_factory=list)
    _closed: threading.Event = PrivateAttr(default_factory=threading.Event)

    @property
    def requests(self) -> list[tuple[str, dict[str, Any]]]:
        """(prompt, arguments) of every request."""
        return self._requests

    @property
    def closed(self) -> threading.Event:
        """Set when a stream was closed, at its end or before."""
        return self._closed

    @property
    def _llm_type(self) -> str:
        return "fake-scripted-chat-model"

    def _generate(self, messages: list[BaseMessage], *_: Any, **arguments: Any) -> ChatResult:
        prompt = str(messages[-1].content)
        self._requests.append((prompt, arguments))
        if not arguments.get("logprobs"):
            return ChatResult(generations=[ChatGeneration(message=AIMessage(self.say(prompt)))])
        yes = min(max(self.yes(prompt), 1e-6), 1 - 1e-6)
        top = [{"token": "yes", "logprob": math.log(yes)}, {"token": "no", "logprob": math.log(1 - yes)}]
        message = AIMessage("yes", response_metadata={"logprobs": {"content": [top[0] | {"top_logprobs": top}]}})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages: list[BaseMessage], *_: Any, **arguments: Any) -> Iterator[ChatGenerationChunk]:
        prompt = str(messages[-1].content)
        self._requests.append((prompt, arguments))
        words = self.say(prompt).replace(" ", "\0 ").split("\0")
        limit = arguments.get("max_tokens") or len(words)
        wait = threading.Event()
        try:
            for word in words[:limit]:
                wait.wait(self.pause)
                yield ChatGenerationChunk(message=AIMessageChunk(word))
            finish = "length" if len(words) > limit else "stop"
            usage = {"input_tokens": 10, "output_tokens": min(len(words), limit), "total_tokens": 10}
            yield ChatGenerationChunk(
                message=AIMessageChunk("", usage_metadata=usage, response_metadata={"finish_reason": finish})
            )
        finally:
            self._closed.set()
