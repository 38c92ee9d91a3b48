"""Everything a question needs, opened and closed together: endpoint, strategy, tools, prompt, log.

`ask`, `chat`, `replay --ask-again` and the demo differ only in what they do inside this block.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlsplit

from shared.errors import UserError
from shared.terminal import say
from step2_tool_calling.approval import Approval, Policy
from step2_tool_calling.conversation import Event, Finished, Message, Started, Usage
from step2_tool_calling.loop import Limits, Observe, run
from step2_tool_calling.prompts import Prompt, examples_with, load_prompt, writes_tools
from step2_tool_calling.strategies import Model, Name, take_turn
from step2_tool_calling.text_calls import PLACEHOLDER
from step2_tool_calling.tool import Tool

if TYPE_CHECKING:
    from shared.endpoint import Endpoint
    from step2_tool_calling.log import Log

UNTAUGHT = "smollm2-135m"  # calls no tool by itself; what step 4 trains on it is read with the same grammar


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
    """A place to put questions: `await session.put(messages)`. sandbox: whether the built-in APIs' data is made up."""

    model: Model
    strategy: Name
    endpoint: "Endpoint"
    tools: list[Tool]
    prompt: Prompt
    wishes: Wishes
    log: "Log"
    sandbox: bool
    approve: Approval

    @property
    def local(self) -> bool:
        """Whether the model is taken to run on this machine, where tokens cost nothing but time."""
        return is_local(self.endpoint)

    def price(self, usage: Usage) -> float | None:
        """US dollars for these tokens."""
        from step2_tool_calling.prices import cost

        return cost(self.model.name, usage, local=self.local)

    def preamble(self) -> list[Message]:
        """The prompt's messages, without the worked examples whose tools are not offered."""
        return examples_with(self.prompt.messages, self.tools)

    def opening(self, question: str) -> list[Message]:
        """What a conversation begins with: the preamble and the question."""
        return [*self.preamble(), {"role": "user", "content": question}]

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
            approve=self.approve,
            observe=observe,
            limits=self.wishes.limits,
            price=self.price,
        )


@asynccontextmanager
async def open_session(endpoint: "Endpoint", wishes: Wishes, *, quiet: bool = False) -> AsyncIterator[Session]:
    """Collect the tools, choose the strategy, open the log. quiet: no remarks on stderr but warnings.

    Raises UserError for what cannot work (a prompt or tool that is not there, a broken price list), before anything is
    asked or paid for.
    """
    from openai import AsyncOpenAI

    from step2_tool_calling.log import Log

    remark: Callable[[str], None] = (lambda _: None) if quiet else say
    prompt = load_prompt(wishes.prompt)
    strategy, reason = choose_strategy(wishes.strategy, endpoint, prompt)
    _check_price(endpoint, wishes.limits)
    async with AsyncExitStack() as stack:
        # Two retries of the client's own: on connection errors, 408, 409, 429 and 5xx, with backoff and jitter.
        client = AsyncOpenAI(
            base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=2, timeout=wishes.timeout
        )
        stack.push_async_callback(client.close)
        if wishes.builtin and wishes.sandbox is None and not await live_apis_answer():
            wishes = replace(wishes, sandbox=True)
            say("  tools    sandbox data, not live  (the network does not answer; --live insists)")
        elif wishes.builtin and wishes.sandbox:
            remark("  tools    sandbox data, not live  (--sandbox)")
        tools = await collect_tools(stack, wishes)
        remark(f"  strategy {strategy}  ({reason})")
        model = Model(
            client,
            endpoint.model,
            max_tokens=wishes.max_tokens,
            temperature=wishes.temperature,
            call_threshold=choose_threshold(wishes.call_threshold, endpoint),
        )
        log = stack.enter_context(Log())
        sandboxed = wishes.builtin and bool(wishes.sandbox)
        yield Session(model, strategy, endpoint, tools, prompt, wishes, log, sandboxed, Approval(wishes.approve))


def _check_price(endpoint: "Endpoint", limits: Limits) -> None:
    """Warn when --max-cost cannot be enforced. Raises UserError for a price list that is broken."""
    if is_local(endpoint):
        return
    from step2_tool_calling.prices import find_price, load_prices

    if find_price(endpoint.model, load_prices()) is None and limits.dollars != Limits().dollars:
        say(f"  warning  no price is known for {endpoint.model}: --max-cost cannot be enforced", 11)


async def collect_tools(stack: AsyncExitStack, wishes: Wishes) -> list[Tool]:
    """All tools that were asked for, connections and the sandbox kept open by `stack`. wishes.sandbox None is live.

    Raises UserError for a name in `only` that no tool has, and when two tools share a name.
    """
    found: list[tuple[str, Sequence[Tool]]] = []  # tools, and what leaves them out
    if wishes.builtin:
        found.append(("--no-builtin", await _builtin(stack, sandboxed=bool(wishes.sandbox))))
    for path in wishes.files:
        from step2_tool_calling.function_tools import load_file

        found.append((f"no --tools {path}", load_file(path)))
    if wishes.openapi:
        from step2_tool_calling.http_client import HttpClient
        from step2_tool_calling.openapi import load_openapi

        hosts = set(wishes.allow_hosts) or None
        client = await stack.enter_async_context(HttpClient(allow_hosts=hosts))
        found += [(f"no --openapi {source}", await load_openapi(source, client)) for source in wishes.openapi]
    for target in wishes.mcp:
        from step2_tool_calling.mcp_client import connect_mcp

        found.append((f"no --mcp {target}", await stack.enter_async_context(connect_mcp(target))))
    known: dict[str, tuple[Tool, str]] = {}
    for without, tools in found:
        for tool in tools:
            if tool.name in known:
                other, without_other = known[tool.name]
                raise UserError(
                    f"two tools are called {tool.name!r} ({other.source} and {tool.source}), and --only cannot tell "
                    f"them apart: leave one source out ({without_other}, or {without})"
                )
            known[tool.name] = (tool, without)
    if unknown := [name for name in wishes.only if name not in known]:
        raise UserError(f"no tool called {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name][0] for name in wishes.only or known]


async def _builtin(stack: AsyncExitStack, *, sandboxed: bool) -> list[Tool]:
    """The built-in APIs, live or from the sandbox."""
    from step2_tool_calling.apis import Endpoints, builtin_tools
    from step2_tool_calling.http_client import HttpClient
    from step2_tool_calling.sandbox import sandbox

    endpoints = stack.enter_context(sandbox()) if sandboxed else Endpoints()
    guarded = HttpClient(allow_private=sandboxed, allow_hosts=endpoints.hosts())
    return builtin_tools(await stack.enter_async_context(guarded), endpoints)


async def live_apis_answer() -> bool:
    """Whether the built-in APIs can be reached; takes two seconds at most."""
    from step2_tool_calling.apis import Endpoints
    from step2_tool_calling.http_client import HttpClient
    from step2_tool_calling.sandbox import network_answers

    live = Endpoints()
    async with HttpClient(allow_hosts=live.hosts()) as client:
        return await network_answers(client, live)


def choose_strategy(wish: str, endpoint: "Endpoint", prompt: Prompt) -> tuple[Name, str]:
    """The strategy and why.

    auto: the project's model was never taught to call tools, so its form of calls is forced, wherever it is served.
    Every other model at an endpoint, on this machine too, is taken to know tools: `constrained` decides by the
    probability of the tokens that begin "<tool_call>", and a model whose template writes calls in another form has none
    on those.
    A prompt that writes the tools itself needs `text`, which alone fills them in.
    Raises UserError for a strategy that does not exist, or that such a prompt cannot be used with.
    """
    names: tuple[Name, ...] = get_args(Name)
    if wish not in ("auto", *names):
        raise UserError(f"--strategy {wish!r}: use auto, native, constrained or text")
    if writes_tools(prompt.messages):
        if wish not in ("auto", "text"):
            raise UserError(f"--prompt {prompt.name} writes the tools itself ({PLACEHOLDER}): use --strategy text")
        return "text", "--strategy" if wish == "text" else f"auto: the prompt {prompt.name} writes the tools itself"
    for name in names:
        if wish == name:
            return name, "--strategy"
    if endpoint.engine is not None:
        return "constrained", "auto: the embedded engine can hold a small model to the tools' schemas"
    if endpoint.base == UNTAUGHT:
        return "constrained", f"auto: {UNTAUGHT} was never taught to call tools, so it is held to their schemas"
    return "native", "auto: an endpoint is taken to know tools; --strategy text if it does not"


def choose_threshold(wish: float | None, endpoint: "Endpoint") -> float:
    """From which probability on `constrained` calls a tool, where the user does not say.

    The base model gives a tool call 0 to 0.28 of its probability, whether the question needs one or not (12 questions
    that do, 8 that do not): so it always calls on the first turn. Others, the adapter `tools` among them, are taken at
    their word.
    """
    if wish is not None:
        return wish
    forced = endpoint.engine is not None or endpoint.base == UNTAUGHT
    return 0.0 if forced and endpoint.model == endpoint.base else 0.5


def is_local(endpoint: "Endpoint") -> bool:
    """Whether the endpoint is the embedded engine or a server on this machine, which costs nothing.

    A proxy on this machine that passes requests on to a hosted model counts as local, too: what it costs is not known.
    """
    host = urlsplit(endpoint.base_url).hostname or ""
    return endpoint.engine is not None or host in ("localhost", "::1") or host.startswith("127.")
