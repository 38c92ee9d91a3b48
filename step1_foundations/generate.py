"""`generate` and `chat`: the answer as it is made, coloured by how sure the model was of each token.

    python -m step1_foundations generate "What is the capital of France?" --explain
    python -m step1_foundations chat --system "Answer in one sentence."

The loop itself is shared/engine.py; this file is what a person sees of it.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.engine import Engine
from shared.errors import UserError
from shared.files import atomic_write
from shared.generation import Event, Request
from shared.sampling import Sampling
from shared.terminal import console

# Probability of the chosen token → colour; from sure to surprised, in an order that survives colour-blindness.
SURENESS = ((0.9, "default"), (0.5, "#56B4E9"), (0.2, "#E69F00"), (0.0, "#D55E00"))
ALTERNATIVES = 3


@dataclass
class Answer:
    """A finished answer with its figures; times in seconds."""

    text: str
    tokens: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish: str = ""
    ttft: float = 0.0
    decode_tokens_per_second: float = 0.0

    def footer(self) -> str:
        """One line of figures under an answer."""
        speed = f", {self.decode_tokens_per_second:.0f} tok/s" if self.decode_tokens_per_second else ""
        cached = f" ({self.cached_tokens} from the KV cache)" if self.cached_tokens else ""
        return (
            f"{self.prompt_tokens} prompt tokens{cached}, {len(self.tokens)} answer tokens, "
            f"first after {self.ttft * 1000:.0f} ms{speed}, finish: {self.finish}"
        )


def answer(
    engine: Engine, prompt: list[int], sampling: Sampling, max_tokens: int | None, on_event: Callable[[Event], None]
) -> Answer:
    """Generate one answer, calling `on_event` as tokens come; Ctrl-C ends the answer, not the session."""
    request = Request(
        prompt, sampling, max_tokens, logprobs=ALTERNATIVES, adapter=next(iter(engine.model.adapters), None)
    )
    tokenizer = engine.model.tokenizer
    result = Answer("", prompt_tokens=len(prompt))
    start = time.perf_counter()
    first = last = start
    events = engine.generate(request)
    try:
        for event in events:
            last = time.perf_counter()
            if not result.tokens:
                first = last
            result.text += event.text
            if event.token is not None and event.logprob is not None:
                top = [{"token": tokenizer.piece(t), "probability": math.exp(p)} for t, p in event.logprob.top]
                result.tokens.append(
                    {
                        "id": event.token,
                        "token": tokenizer.piece(event.token),
                        "probability": math.exp(event.logprob.logprob),
                        "top": top,
                    }
                )
            on_event(event)
            if event.finish == "error":
                raise UserError(f"generation failed: {event.error}", exit_code=1)
            result.finish = event.finish or ""
    except KeyboardInterrupt:
        result.finish = "interrupted"
    finally:
        events.close()  # type: ignore[attr-defined]  # a generator: closing it cancels the request
    result.ttft = first - start
    if len(result.tokens) > 1 and last > first:
        result.decode_tokens_per_second = (len(result.tokens) - 1) / (last - first)
    return result


def printer(explain: bool) -> Callable[[Event], None]:
    """Return a function that writes events to stdout as they come; with `explain`, coloured by probability."""
    out = console()

    def write(event: Event) -> None:
        if explain and event.logprob is not None and event.text:
            out.print(event.text, style=sureness(math.exp(event.logprob.logprob)), end="", markup=False, soft_wrap=True)
        else:
            sys.stdout.write(event.text)
        sys.stdout.flush()

    return write


def sureness(probability: float) -> str:
    """The colour of a token that had this probability."""
    return next(colour for threshold, colour in SURENESS if probability >= threshold)


def print_explanation(result: Answer) -> None:
    """List the tokens where the model hesitated most, with what it nearly said."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    legend = "  ".join(f"[{colour}]≥ {threshold:.0%}[/]" for threshold, colour in SURENESS)
    out.print(f"\ncolour = probability of the chosen token: {legend}")
    doubtful = sorted(result.tokens, key=lambda t: t["probability"])[:8]
    table = Table("token", "probability", "likeliest instead", box=None, padding=(0, 2))
    for token in sorted(doubtful, key=result.tokens.index):
        others = [t for t in token["top"] if t["token"] != token["token"]][:2]
        text = ", ".join(f"{t['token']!r} {t['probability']:.0%}" for t in others)
        table.add_row(Text(repr(token["token"])), f"{token['probability']:.0%}", Text(text))
    out.print("where it hesitated most:")
    out.print(table)


@dataclass
class Session:
    """A conversation: messages so far, and what the slash commands change."""

    engine: Engine
    sampling: Sampling
    max_tokens: int | None
    explain: bool = False
    quiet: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)

    def reply(self, text: str) -> Answer:
        """Answer a user's message. An interrupted answer stays in the conversation as far as it came."""
        self.messages.append({"role": "user", "content": text})
        tokenizer = self.engine.model.tokenizer
        try:
            prompt = tokenizer.encode(tokenizer.render(self.messages))
            write = (lambda _: None) if self.quiet else printer(self.explain)
            result = answer(self.engine, prompt, self.sampling, self.max_tokens, write)
        except UserError:
            self.messages.pop()  # too long, say: the next message must not carry it along
            raise
        self.messages.append({"role": "assistant", "content": result.text})
        return result

    def set_system(self, text: str) -> None:
        """Replace the system message; empty text removes it."""
        rest = [m for m in self.messages if m["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *rest] if text else rest

    def reset(self) -> None:
        """Forget the conversation, keep the system message."""
        self.messages = [m for m in self.messages if m["role"] == "system"]

    def save(self, path: Path) -> None:
        """Write the conversation as JSON."""
        atomic_write(path, json.dumps({"model": self.engine.model.name, "messages": self.messages}, indent=2) + "\n")


HELP = """\
/system TEXT   set the system message (no text: remove it)
/explain       colour tokens by probability, on or off
/reset         start over, keep the system message
/save FILE     write the conversation as JSON
/quit          leave (or Ctrl-D); Ctrl-C stops an answer and keeps the session"""


def chat(session: Session, lines: Iterator[str]) -> None:
    """Run a conversation over lines of input until they end or say /quit."""
    out = console(stderr=session.quiet)
    for raw in lines:
        command, _, argument = raw.strip().partition(" ")
        argument = argument.strip()
        try:
            if not command:
                continue
            if command == "/quit":
                return
            if command == "/help":
                out.print(HELP, markup=False)
            elif command == "/system":
                session.set_system(argument)
                out.print("system message set" if argument else "system message removed")
            elif command == "/explain":
                session.explain = not session.explain
                out.print(f"explain {'on' if session.explain else 'off'}")
            elif command == "/reset":
                session.reset()
                out.print("conversation forgotten")
            elif command == "/save":
                if not argument:
                    raise UserError("/save needs a file name, like /save talk.json")
                session.save(Path(argument).expanduser())
                out.print(f"saved to {argument}", markup=False)
            elif command.startswith("/"):
                out.print(f"unknown command {command}\n{HELP}", markup=False)
            else:
                result = session.reply(raw.strip())
                if not session.quiet:
                    out.print(f"\n({result.footer()})", style="dim", markup=False, soft_wrap=True)
        except BrokenPipeError:
            raise
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)


def read_lines(prompt: str, *, echo: bool = True) -> Iterator[str]:
    """Lines from the terminal (with editing and history) or from a pipe, echoed; ends at end of input."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if echo:
                print(f"{prompt}{line.rstrip()}")
            yield line
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # importing it gives input() line editing and history
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            print("  (Ctrl-D or /quit to leave)")
        except EOFError:
            print()
            return
