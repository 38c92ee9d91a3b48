"""Everything a question needs, opened and closed together: endpoint, strategy, tools, prompt, log.

`ask`, `chat`, `replay --ask-again` and the demo differ only in what they do inside this block.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from shared.errors import UserError
from shared.terminal import say
from step2_tool_calling.conversation import Event, Finished, Message, Started, Usage
from step2_tool_calling.loop import Limits, Observe, run
from step2_tool_calling.prompts import Prompt, examples_with, load_prompt
from step2_tool_calling.strategies import Model, Name, take_turn
from step2_tool_calling.tool import Tool

if TYPE_CHECKING:
    from shared.endpoint import Endpoint
    from step2_tool_calling.log import Log

Policy = Literal["always", "unsafe", "never"]


@dataclass(frozen=True)
class Wishes:
    """What the command line can ask for; the defaults are the command line's."""

    prompt: str = "assistant"
    strategy: str = "auto"
    files: Sequence[Path] = ()
    openapi: Sequence[str] = ()
    mcp: Sequence[str] = ()
    only: Sequence[str] = ()
    sandbox: bool | None = None  # None: when the network does not answer
    builtin: bool = True
    allow_hosts: Sequence[str] = ()
    approve: Policy = "unsafe"
    limits: Limits = field(default_factory=Limits)
    call_threshold: float | None = None  # None: as choose_threshold finds right
    max_tokens: int = 512
    temperature: float = 0.0
    timeout: float = 120.0


@dataclass
class Session:
    """A place to put questions: `await session.put(messages)`."""

    model: Model
    strategy: Name
    endpoint: "Endpoint"
    tools: list[Tool]
    prompt: Prompt
    wishes: Wishes
    log: "Log"

    @property
    def local(self) -> bool:
        """Whether the model runs on this machine, where tokens cost nothing but time."""
        return is_local(self.endpoint)

    def price(self, usage: Usage) -> float | None:
        """US dollars for these tokens."""
        from step2_tool_calling.prices import cost

        return cost(self.model.name, usage, local=self.local)

    def opening(self, question: str) -> list[Message]:
        """The prompt's messages and the question. Worked examples with tools that are not offered are left out."""
        return [*examples_with(self.prompt.messages, self.tools), {"role": "user", "content": question}]

    async def put(self, messages: list[Message], observers: Sequence[Observe]) -> Finished:
        """Run the loop on these messages, which grow; every event goes to the log and to the observers."""
        listeners: list[Observe] = [self.log.conversation(), *observers]

        def observe(event: Event) -> None:
            for listener in listeners:
                listener(event)

        names = [tool.name for tool in self.tools]
        where = "embedded" if self.endpoint.engine is not None else self.endpoint.base_url
        observe(Started(list(messages), self.model.name, where, self.strategy, self.prompt.label, names))
        return await run(
            partial(take_turn, self.strategy, self.model),
            messages,
            self.tools,
            approve=partial(approve, self.wishes.approve),
            observe=observe,
            limits=self.wishes.limits,
            price=self.price,
        )


@asynccontextmanager
async def open_session(endpoint: "Endpoint", wishes: Wishes, *, quiet: bool = False) -> AsyncIterator[Session]:
    """Collect the tools, choose the strategy, open the log. quiet: no remarks on stderr."""
    from openai import AsyncOpenAI

    from step2_tool_calling.log import Log

    remark: Callable[[str], None] = (lambda _: None) if quiet else say
    prompt = load_prompt(wishes.prompt)
    async with AsyncExitStack() as stack:
        # Two retries of the client's own: on connection errors, 408, 409, 429 and 5xx, with backoff and jitter.
        client = AsyncOpenAI(
            base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=2, timeout=wishes.timeout
        )
        stack.push_async_callback(client.close)
        tools = await collect_tools(stack, wishes, remark)
        strategy, reason = choose_strategy(wishes.strategy, endpoint)
        remark(f"  strategy {strategy}  ({reason})")
        model = Model(
            client,
            endpoint.model,
            max_tokens=wishes.max_tokens,
            temperature=wishes.temperature,
            call_threshold=choose_threshold(wishes.call_threshold, endpoint),
        )
        log = stack.enter_context(Log())
        yield Session(model, strategy, endpoint, tools, prompt, wishes, log)


async def collect_tools(stack: AsyncExitStack, wishes: Wishes, remark: Callable[[str], None]) -> list[Tool]:
    """All tools that were asked for, connections and the sandbox kept open by `stack`.

    Raises UserError for a name in `only` that no tool has, and when two tools share a name.
    """
    from step2_tool_calling.http_client import HttpClient
    from step2_tool_calling.tool import by_name

    tools: list[Tool] = []
    if wishes.builtin:
        tools += await _builtin(stack, wishes, remark)
    for path in wishes.files:
        from step2_tool_calling.function_tools import load_file

        tools += load_file(path)
    if wishes.openapi:
        from step2_tool_calling.openapi import load_openapi

        hosts = set(wishes.allow_hosts) or None
        client = await stack.enter_async_context(HttpClient(allow_hosts=hosts))
        for source in wishes.openapi:
            tools += await load_openapi(source, client)
    for target in wishes.mcp:
        from step2_tool_calling.mcp_client import connect_mcp

        tools += await stack.enter_async_context(connect_mcp(target))
    known = by_name(tools)
    if unknown := [name for name in wishes.only if name not in known]:
        raise UserError(f"no tool called {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in wishes.only] if wishes.only else tools


async def _builtin(stack: AsyncExitStack, wishes: Wishes, remark: Callable[[str], None]) -> list[Tool]:
    """The built-in APIs, live or from the sandbox."""
    from step2_tool_calling.apis import Endpoints, builtin_tools
    from step2_tool_calling.http_client import HttpClient
    from step2_tool_calling.sandbox import network_answers, sandbox

    live = Endpoints()
    client = await stack.enter_async_context(HttpClient(allow_hosts=live.hosts()))
    use_sandbox = wishes.sandbox
    if use_sandbox is None:
        use_sandbox = not await network_answers(client, live)
        if use_sandbox:
            remark("  tools    sandbox data, not live  (the network does not answer; --live insists)")
    elif use_sandbox:
        remark("  tools    sandbox data, not live  (--sandbox)")
    if not use_sandbox:
        return builtin_tools(client, live)
    endpoints = stack.enter_context(sandbox())
    local = await stack.enter_async_context(HttpClient(allow_private=True, allow_hosts=endpoints.hosts()))
    return builtin_tools(local, endpoints)


def choose_strategy(wish: str, endpoint: "Endpoint") -> tuple[Name, str]:
    """The strategy and why.

    auto: an endpoint on this machine serves a small open model and understands strict tools and logprobs (the embedded
    engine and vLLM do), so the form of calls is forced. A remote one is taken to be trained for tools.
    """
    for name in get_args(Name):
        if wish == name:
            return name, "--strategy"
    if wish != "auto":
        raise UserError(f"--strategy {wish!r}: use auto, native, constrained or text")
    if endpoint.engine is not None:
        return "constrained", "auto: the embedded engine can hold a small model to the tools' schemas"
    if is_local(endpoint):
        return "constrained", "auto: a server on this machine; --strategy native if it has no logprobs or strict tools"
    return "native", "auto: a hosted endpoint is taken to know tools; --strategy text if it does not"


def choose_threshold(wish: float | None, endpoint: "Endpoint") -> float:
    """From which probability on `constrained` calls a tool, where the user does not say.

    The embedded base model gives a tool call 0 to 0.28 of its probability, whether the question needs one or not
    (12 questions that do, 8 that do not): so it always calls on the first turn. Others are taken at their word.
    """
    if wish is not None:
        return wish
    return 0.0 if endpoint.engine is not None else 0.5


async def approve(policy: Policy, tool: Tool, arguments: dict[str, Any]) -> bool:
    """Ask the person at the terminal whether a call may run. Nobody there means no."""
    if policy == "never" or (policy == "unsafe" and not tool.unsafe):
        return True
    import asyncio
    import json
    import sys

    from step2_tool_calling.trace import printable

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    text = printable(json.dumps(arguments, ensure_ascii=False))
    print(f"allow {tool.name}({text})? [y/N] ", end="", file=sys.stderr, flush=True)
    reply = await asyncio.to_thread(sys.stdin.readline)
    return reply.strip().lower() in ("y", "yes")


def is_local(endpoint: "Endpoint") -> bool:
    """Whether the endpoint is the embedded engine or a server on this machine."""
    host = urlsplit(endpoint.base_url).hostname or ""
    return endpoint.engine is not None or host in ("localhost", "::1") or host.startswith("127.")
