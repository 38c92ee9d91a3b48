"""A conversation at the terminal: the same loop, with the history kept from one question to the next."""

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.errors import UserError
from shared.terminal import console
from step2_tool_calling.conversation import Event, Finished, Message, Usage
from step2_tool_calling.loop import Observe
from step2_tool_calling.session import Session, Wishes, open_session
from step2_tool_calling.trace import printable

if TYPE_CHECKING:
    from shared.endpoint import Endpoint

HELP = """/tools   the tools and what they do
/cost    tokens and money so far
/undo    take back the last question and everything that followed from it
/help    this list
/quit    leave (also Ctrl-D); Ctrl-C stops an answer"""


class Chat:
    """The history and what it used: the tokens of all questions, also of those that failed or were stopped.

    A turn that was stopped while it streamed is missing: how many tokens it had was not yet said.
    """

    def __init__(self, session: Session, observers: list[Observe]) -> None:
        self.session, self.observers = session, [*observers, self._count]
        self.messages: list[Message] = session.preamble()
        self.used = Usage()
        self._beginning = len(self.messages)
        self.idle = threading.Event()  # no question is being answered
        self.idle.set()

    def _count(self, event: Event) -> None:
        if isinstance(event, Finished):
            self.used += event.usage

    async def question(self, text: str) -> None:
        """Put one question. An answer that is cut short leaves the history as it was before."""
        before = len(self.messages)
        self.messages.append({"role": "user", "content": text})
        self.idle.clear()
        try:
            await self.session.put(self.messages, self.observers)
        except BaseException:
            del self.messages[before:]
            raise
        finally:
            self.idle.set()

    def undo(self) -> bool:
        """Take back the last question; False when there is none. The prompt's own examples stay."""
        for index in range(len(self.messages) - 1, self._beginning - 1, -1):
            if self.messages[index]["role"] == "user":
                del self.messages[index:]
                return True
        return False

    def command(self, line: str) -> bool:
        """Run a /command; False when it is the one that leaves."""
        out = console(stderr=True)
        match line.split()[0]:
            case "/quit" | "/exit":
                return False
            case "/tools":
                for tool in self.session.tools:
                    summary = (tool.description.splitlines() or [""])[0]
                    out.print(printable(f"{tool.name}  {summary}"), markup=False, soft_wrap=True)
            case "/cost":
                used, dollars = self.used, self.session.price(self.used)
                money = "price unknown" if dollars is None else f"${dollars:.4f}"
                money = "local" if self.session.local else money
                out.print(f"{used.requests} requests, {used.total:,} tokens ({used.cached:,} cached), {money}")
            case "/undo":
                out.print("taken back" if self.undo() else "there is no question to take back")
            case "/help":
                out.print(HELP, markup=False)
            case other:
                out.print(f"no command {printable(other)}; /help lists them", markup=False)
        return True


def converse(endpoint: "Endpoint", wishes: Wishes, observers: list[Observe], *, quiet: bool = False) -> Chat:
    """Read questions until the end of input. A failed question is reported; the conversation goes on.

    The terminal belongs to this thread and the session to another one: `input` blocks, and Ctrl-C must reach whoever
    reads the terminal, where it means "stop this answer", not "end the program".
    """
    with _session_thread(endpoint, wishes, quiet) as (session, loop):
        chat = Chat(session, observers)
        for line in read_lines("you> "):
            if not line.strip():
                continue
            if line.startswith("/"):
                if not chat.command(line):
                    break
                continue
            answer = asyncio.run_coroutine_threadsafe(chat.question(line), loop)
            try:
                answer.result()
            except KeyboardInterrupt:
                answer.cancel()
                # The future is cancelled at once, the answer soon after: it may still be reading the terminal.
                chat.idle.wait(timeout=10)
                print("(stopped)", file=sys.stderr)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
        return chat


@contextlib.contextmanager
def _session_thread(
    endpoint: "Endpoint", wishes: Wishes, quiet: bool
) -> Iterator[tuple[Session, asyncio.AbstractEventLoop]]:
    """A session that lives in a thread with an event loop of its own, opened and closed by one and the same task."""
    opened: concurrent.futures.Future[tuple[Session, asyncio.AbstractEventLoop]] = concurrent.futures.Future()
    closing = asyncio.Event()

    async def live() -> None:
        try:
            async with open_session(endpoint, wishes, quiet=quiet) as session:
                opened.set_result((session, asyncio.get_running_loop()))
                await closing.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    thread = threading.Thread(target=asyncio.run, args=(live(),), name="session", daemon=True)
    thread.start()
    session, loop = opened.result()
    try:
        yield session, loop
    finally:
        loop.call_soon_threadsafe(closing.set)
        thread.join(timeout=10)


def read_lines(prompt: str) -> Iterator[str]:
    """Lines from the terminal, with editing and history, or from a pipe, echoed; ends at the end of input."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            print(f"{prompt}{line.rstrip()}", file=sys.stderr)
            yield line.rstrip("\n")
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # importing it gives input() line editing and history
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            print("  (Ctrl-D or /quit to leave)", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return
