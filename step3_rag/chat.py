"""A conversation at the terminal: each question is first made to stand alone, then answered like any other.

python -m step3_rag chat
python -m pytest tests/step3/test_cli_ask.py
"""

import contextlib
import sys
from collections.abc import Callable, Iterator

from shared.errors import UserError
from shared.foreign_text import one_line, printable
from shared.terminal import console, say
from step3_rag.answers import Answer, Event, Step
from step3_rag.reflection import Reflection, run
from step3_rag.resources import Resources
from step3_rag.rewriting import standalone
from step3_rag.trace import Trace, cited_passages, place, step_line

HELP = """/sources  the passages of the last answer, whole
/trace    how the last answer came about
/undo     forget the last question, as if it had not been asked
/help     this list
/quit     leave (also Ctrl-D); Ctrl-C stops an answer"""


class Chat:
    """What was asked and answered so far. show: sees every event of every question."""

    def __init__(self, resources: Resources, settings: Reflection, show: Callable[[Event], None]) -> None:
        self.resources, self.settings, self.show = resources, settings, show
        self.answers: list[Answer] = []
        self.steps: list[list[Step]] = []  # of each answer

    def understand(self, question: str) -> str:
        """Return the question so that it can be understood alone. Raises UserError when the endpoint fails."""
        # A declined question is not leant on: "it" means what was talked about.
        history = [(answer.question, answer.text) for answer in self.answers if not answer.abstained]
        return standalone(self.resources.model, question, history).query

    def answer(self, question: str) -> None:
        """Answer a question that stands alone. One that fails or is stopped leaves no trace.

        Raises UserError as `run` does, and KeyboardInterrupt.
        """
        steps: list[Step] = []
        for event in run(question, self.resources, self.settings):
            self.show(event)
            if isinstance(event, Step):
                steps.append(event)
            if isinstance(event, Answer):
                self.answers.append(event)
                self.steps.append(steps)

    def undo(self) -> bool:
        """Forget the last question; False when there is none."""
        if not self.answers:
            return False
        self.answers.pop()
        self.steps.pop()
        return True

    def command(self, line: str) -> bool:
        """Run a /command; False when it is the one that leaves."""
        out = console(stderr=True)
        match line.split()[0]:
            case "/quit" | "/exit":
                return False
            case "/sources":
                self._sources()
            case "/trace":
                from rich.text import Text

                for step in self.steps[-1] if self.steps else []:
                    out.print(Text.assemble(*step_line(step)), soft_wrap=True)
            case "/undo":
                out.print("forgotten" if self.undo() else "there is no question to forget")
            case "/help":
                out.print(HELP, markup=False)
            case other:
                out.print(f"no command {one_line(other, 80)}; /help lists them", markup=False)
        return True

    def _sources(self) -> None:
        out = console(stderr=True)
        if not self.answers:
            out.print("nothing was asked yet")
            return
        answer = self.answers[-1]
        numbers = cited_passages(answer)
        passages = {c.passage.id: c.passage for sentence in answer.sentences for c in sentence.citations}
        for name, number in numbers.items():
            passage = passages[name]
            out.print(f"[{number}] {place(passage)}, {passage.start}–{passage.end}", markup=False, soft_wrap=True)
            out.print(printable(passage.text), markup=False, style="dim", soft_wrap=True)
        if not numbers:
            for hit in answer.nearest:
                out.print(f"nearest: {place(hit.passage)}", markup=False, soft_wrap=True)


def converse(resources: Resources, settings: Reflection, *, steps: bool, quiet: bool = False) -> Chat:
    """Read questions until the end of input. A failed question is reported; the conversation goes on.

    steps: show every decision. quiet: show nothing, for --json.
    """
    trace = Trace(steps=steps)
    chat = Chat(resources, settings, (lambda _: None) if quiet else trace)
    for line in read_lines("you> "):
        if not line.strip():
            continue
        if line.startswith("/"):
            if not chat.command(line):
                break
            continue
        try:
            question = chat.understand(line)
            if not quiet:
                if question != line:
                    say(f"understood as: {one_line(question, 400)}")
                trace.begin()
            chat.answer(question)
        except KeyboardInterrupt:
            trace.stopped()
            print("(stopped)", file=sys.stderr)
        except UserError as error:
            trace.stopped()
            print(f"error: {error}", file=sys.stderr)
    return chat


def read_lines(prompt: str) -> Iterator[str]:
    """Lines from the terminal, with editing and history, or from a pipe, echoed; ends at the end of input."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            print(f"{prompt}{printable(line.rstrip())}", file=sys.stderr)
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
