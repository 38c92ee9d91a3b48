"""Options that several verbs of step 2 have, and the wishes they add up to."""

from pathlib import Path
from typing import Annotated, cast

import typer

from shared.errors import UserError
from step2_tool_calling.approval import Policy
from step2_tool_calling.loop import Limits
from step2_tool_calling.session import Wishes

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", show_default="$MODEL, else smollm2-135m",
                 help="Model to load, or a name that OPENAI_BASE_URL serves."),
]  # fmt: skip
Prompt = Annotated[str, typer.Option("--prompt", "-p", metavar="NAME", help="A prompt of `prompts`, or a .md file.")]
Strategy = Annotated[
    str,
    typer.Option("--strategy", "-s", metavar="NAME",
                 help="native, constrained or text; auto: constrained for the embedded engine, else native."),
]  # fmt: skip
Files = Annotated[
    list[Path] | None,
    typer.Option("--tools", metavar="FILE.py", show_default=False, help="Functions of a Python file; repeatable."),
]
OpenApi = Annotated[
    list[str] | None,
    typer.Option("--openapi", metavar="FILE|URL", show_default=False, help="An OpenAPI 3 document; repeatable."),
]
Mcp = Annotated[
    list[str] | None,
    typer.Option("--mcp", metavar="COMMAND|URL", show_default=False, help="An MCP server; repeatable."),
]
Only = Annotated[
    str | None, typer.Option(metavar="A,B,…", show_default="all", help="Offer only these tools.")
]  # fmt: skip
Sandbox = Annotated[
    bool | None,
    typer.Option("--sandbox/--live", show_default="live if the network answers",
                 help="Bundled data from a loopback server, or the real APIs."),
]  # fmt: skip
Builtin = Annotated[bool, typer.Option("--builtin/--no-builtin", help="Offer the built-in APIs.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST", show_default="any public one", help="Let --openapi tools reach only this; repeatable."
    ),
]
Approve = Annotated[str, typer.Option(metavar="WHEN", help="Ask before a call runs: always, unsafe ones, or never.")]
Steps = Annotated[
    int, typer.Option("--max-steps", min=1, help="Model turns at most; the last gets no tools, so 1 means none.")
]
Tokens = Annotated[int, typer.Option("--max-total-tokens", min=1, help="Tokens of all turns at most.")]
Dollars = Annotated[
    float,
    typer.Option("--max-cost", min=0.0, metavar="USD",
                 help="Money at most, by prices.toml; an endpoint on this machine is local and costs 0."),
]  # fmt: skip
Threshold = Annotated[
    float | None,
    typer.Option("--call-threshold", min=0.0, max=1.0, show_default="0 for the base model, else 0.5",
                 help="constrained: call from this probability on; 0 always."),
]  # fmt: skip
Timeout = Annotated[
    float,
    typer.Option(min=0.1, metavar="SECONDS",
                 help="Longest silence of the endpoint, in each attempt: ask makes 3, eval 5."),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")]


def wishes_of(
    *,
    prompt: str = "assistant",
    strategy: str = "auto",
    files: list[Path] | None = None,
    openapi: list[str] | None = None,
    mcp: list[str] | None = None,
    only: str | None = None,
    sandbox: bool | None = None,
    builtin: bool = True,
    allow_host: list[str] | None = None,
    approve: str = "unsafe",
    steps: int = 8,
    tokens: int = 50_000,
    dollars: float = 1.0,
    threshold: float | None = None,
    timeout: float = 120.0,
) -> Wishes:
    """Check what was typed and put it together. Raises UserError for an unknown --approve."""
    if approve not in ("always", "unsafe", "never"):
        raise UserError(f"--approve {approve!r}: use always, unsafe or never")
    return Wishes(
        prompt=prompt,
        strategy=strategy,
        files=files or (),
        openapi=openapi or (),
        mcp=mcp or (),
        only=list(dict.fromkeys(name.strip() for name in (only or "").split(",") if name.strip())),
        sandbox=sandbox,
        builtin=builtin,
        allow_hosts=allow_host or (),
        approve=cast("Policy", approve),
        limits=Limits(steps, tokens, dollars),
        call_threshold=threshold,
        timeout=timeout,
    )
