"""Asking the person at the terminal whether a call may run (`--approve always|unsafe|never`).

    python -m step2_tool_calling ask "Send Eve a mail." --tools mail.py

A yes has to answer the question. What was typed or pasted before it was shown is thrown away, or the second line of a
pasted text would approve the call that its first line led to. The terminal is read by the event loop: a thread in
readline() could not be stopped by Ctrl-C, and would swallow the next line that is meant for somebody else.
"""

import asyncio
import json
import os
import sys
from typing import Any, Literal

from shared.foreign_text import printable
from shared.terminal import say
from step2_tool_calling.tool import Tool

Policy = Literal["always", "unsafe", "never"]


class Approval:
    """Decides about the calls of one session: awaitable, as the loop wants it. policy: which tools need a yes."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._told: set[str] = set()

    async def __call__(self, tool: Tool, arguments: dict[str, Any]) -> bool:
        """Whether the call may run. Nobody at the terminal means no, with a remark the first time for each tool."""
        if self.policy == "never" or (self.policy == "unsafe" and not tool.unsafe):
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            if tool.name not in self._told:
                self._told.add(tool.name)
                say(f"  nobody at the terminal to ask: {printable(tool.name)} not run; --approve never allows it", 2)
            return False
        text = printable(json.dumps(arguments, ensure_ascii=False))
        reply = await _ask(f"allow {printable(tool.name)}({text})? [y/N] ")
        return reply.strip().lower() in ("y", "yes")


async def _ask(question: str) -> str:
    """Show the question and return the line typed after that; "" at the end of input. Can be cancelled."""
    try:
        import termios
    except ImportError:  # Windows: no way to wait for the console in an event loop, so Ctrl-C takes effect after Enter
        print(question, end="", file=sys.stderr, flush=True)
        return await asyncio.to_thread(sys.stdin.readline)

    terminal = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()
    typed = bytearray()

    def read() -> None:
        try:
            piece = os.read(terminal, 1024)
        except OSError:  # the terminal is gone
            piece = b""
        typed.extend(piece)
        if not piece or b"\n" in piece:
            loop.remove_reader(terminal)  # at once: the next line is not for us
            line.set_result(typed.decode(errors="replace"))

    termios.tcflush(terminal, termios.TCIFLUSH)
    print(question, end="", file=sys.stderr, flush=True)
    loop.add_reader(terminal, read)
    try:
        return await line
    except asyncio.CancelledError:
        print(file=sys.stderr)  # what is said about that begins a line
        raise
    finally:
        loop.remove_reader(terminal)
