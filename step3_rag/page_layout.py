"""What is on the page and what happens on it: the question, the answer, its cards and trace, the collections, files.

Gradio's Blocks over the markup of page_markup.py; page.py serves it. The words of files, models and people reach the
browser as escaped text only, so the chat is plain HTML and not Gradio's Chatbot, which renders Markdown and would load
the pictures that it names.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.errors import UserError
from step3_rag.answers import Answer, Event
from step3_rag.documents import MAX_BYTES
from step3_rag.encoder import TextEncoder
from step3_rag.page_markup import Turn, advance, answer, cards, decisions, many, past, progress
from step3_rag.page_trace import plain
from step3_rag.store import Store
from step3_rag.uploads import add_files, collections

# (question, earlier questions and answers, the collection's folder) → what happens, the Answer last.
Ask = Callable[[str, Sequence[tuple[str, str]], Path], Iterator[Event]]

LONGEST_QUESTION = 2000  # characters
AT_ONCE = 8  # questions of all visitors together, as many as the embedded engine has in one batch
_WELCOME = (
    '<p class="waiting">Ask something that the collection may answer. Each sentence of the answer is shown with the '
    "passage that it stands on; what the collection does not say is declined.</p>"
)

# A link to a card must not change the page's address (that would reload it, and the conversation would be gone); it
# opens what the card is folded in and moves the focus there, for a keyboard goes on from where the focus is.
_FOLLOW_LINKS = """
element.addEventListener('click', event => {
  const link = event.target.closest('a.cite');
  if (!link) return;
  event.preventDefault();
  const card = document.getElementById(link.getAttribute('href').slice(1));
  const folded = card.closest('details');
  if (folded) folded.open = true;
  card.scrollIntoView({block: 'center'});
  card.focus({preventScroll: true});
});
"""
_SHOW_QUESTION = """
let asked = '';
watch('value', () => {
  const id = element.querySelector('.turn')?.id ?? '';
  if (id && id !== asked) requestAnimationFrame(() => element.scrollIntoView({block: 'start'}));
  asked = id;
});
"""
_ANNOUNCE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"


@dataclass
class Stop:
    """Pressed by one request of the browser, looked at between the events of another."""

    pressed: bool = False


@dataclass(frozen=True)
class Conversation:
    """What one visitor's page knows. earlier: the finished turns as markup; history: as questions and answers.

    sources: the texts of the files that the current turn shows, by path. stop: of the current turn.
    """

    turn: Turn | None = None
    sources: dict[str, str] = field(default_factory=dict)
    earlier: str = ""
    history: tuple[tuple[str, str], ...] = ()
    stop: Stop = field(default_factory=Stop)

    def asking(self, question: str) -> "Conversation":
        """The conversation with the current turn moved to the earlier ones, and a new one begun."""
        if self.turn is None:
            return Conversation(Turn(1, question))
        history = self.history
        # Its question is the one that was made stand-alone. A declined one is not leant on, as in chat.py.
        if self.turn.answer and not self.turn.answer.abstained:
            history = (*history, (self.turn.answer.question, self.turn.answer.text))
        earlier = self.earlier + past(self.turn, self.sources)
        return Conversation(Turn(self.turn.number + 1, question), {}, earlier, history)


def build(folder: Path, ask: Ask, encoder: Callable[[Path], TextEncoder]) -> Any:
    """Return the page, as gradio.Blocks, over the collections beside `folder`."""
    import gradio as gr

    root = folder.parent

    def respond(question: str, conversation: Conversation, name: str) -> Iterator[dict[Any, Any]]:
        """Answer one question, an update of the page for each event."""
        question = question.strip()[:LONGEST_QUESTION]
        if not question:
            yield {box: gr.skip()}
            return
        conversation = conversation.asking(question)
        yield {**shown(conversation), **buttons(running=True), earlier: conversation.earlier, box: ""}
        try:
            for event in ask(question, conversation.history, root / name):
                conversation = _with_event(conversation, event, root / name)
                yield shown(conversation)
                if conversation.stop.pressed and not isinstance(event, Answer):
                    conversation = _failed(conversation, "Stopped.")
                    break
        except Exception as error:
            conversation = _failed(conversation, _explained(error))
        yield {**shown(conversation), **buttons(running=False)}

    def shown(conversation: Conversation) -> dict[Any, Any]:
        """What changes on the page while a question is answered."""
        turn = conversation.turn
        return {
            state: conversation,
            current: answer(turn) if turn else _WELCOME,
            trace: decisions(turn) if turn else "",
            sources: cards(turn, conversation.sources) if turn else "",
            status: plain(progress(turn)) if turn else "",
        }

    def buttons(*, running: bool) -> dict[Any, Any]:
        return {
            send: gr.update(visible=not running),
            stop: gr.update(visible=running, interactive=True, value="Stop"),
            picker: gr.update(interactive=not running),
        }

    def halt(conversation: Conversation) -> dict[str, Any]:
        """Ask the answer to stop. Not by cancelling its event: what that had on its way would come after this."""
        conversation.stop.pressed = True
        return gr.update(interactive=False, value="Stopping")

    def index(paths: list[str] | None, name: str, bar: gr.Progress = gr.Progress()) -> dict[Any, Any]:
        """Add the uploaded files to the collection."""
        if not paths:
            return {report: gr.skip()}

        def on_progress(what: str, done: int, total: int) -> None:
            bar(done / max(total, 1), desc=what)

        try:
            result = add_files([Path(path) for path in paths], root / name, encoder(root / name), on_progress)
        except Exception as error:
            return {report: _message(_explained(error), failed=True), files: None}
        added = result.added + result.changed
        size, seconds = many(result.passages, "passage"), result.seconds
        lines = [f"{added} of {many(len(paths), 'file')} indexed, {size} in all, {seconds:.1f} s."]
        if result.unchanged:
            lines.append(f"{result.unchanged} unchanged.")
        lines += [f"{Path(remark.path).name} {remark.problem}" for remark in result.remarks]
        return {
            report: _message("\n".join(lines), failed=added + result.unchanged < len(paths)),
            files: None,
            about: _about(root / name),
        }

    def refreshed(name: str) -> dict[Any, Any]:
        """The collections that there are now: another process may have made one."""
        names = collections(root, folder.name)
        chosen = name if name in names else folder.name
        return {picker: gr.update(choices=names, value=chosen), about: _about(root / chosen)}

    def picked(name: str) -> dict[Any, Any]:
        """Another collection begins another conversation."""
        fresh = Conversation()
        return {
            **shown(fresh),
            earlier: "",
            report: "",
            about: _about(root / name),
        }

    with gr.Blocks(title="Ask a collection", analytics_enabled=False, fill_width=True) as blocks:
        state = gr.State(Conversation())
        with gr.Row(elem_id="top"):
            about = gr.HTML(_about(folder), apply_default_css=False, js_on_load=None, elem_id="about")
            picker = gr.Dropdown(
                collections(root, folder.name),
                value=folder.name,
                label="Collection",
                elem_id="picker",
                filterable=False,
            )
        with gr.Accordion("Add files", open=False, elem_id="add"):
            files = gr.File(
                file_count="multiple",
                label=f"Markdown, HTML, text, PDF, source code; up to {MAX_BYTES // 1_000_000} MB each",
                height=180,
                elem_id="files",
            )
            report = gr.HTML("", apply_default_css=False, js_on_load=_ANNOUNCE, elem_id="report")
        with gr.Column(elem_id="board"):
            earlier = gr.HTML("", apply_default_css=False, js_on_load=_FOLLOW_LINKS, elem_id="earlier")
            current = gr.HTML(
                _WELCOME, apply_default_css=False, js_on_load=_FOLLOW_LINKS + _SHOW_QUESTION, elem_id="current"
            )
            sources = gr.HTML("", apply_default_css=False, js_on_load=None, elem_id="sources")
            trace = gr.HTML("", apply_default_css=False, js_on_load=None, elem_id="trace")
            with gr.Row(elem_id="ask"):
                box = gr.Textbox(
                    label="Question",
                    placeholder="Ask, then press Enter",
                    lines=1,
                    max_lines=5,
                    autofocus=True,
                    max_length=LONGEST_QUESTION,
                    show_label=False,
                    container=False,
                    scale=1,
                    elem_id="question",
                )
                send = gr.Button("Ask", variant="primary", scale=0, min_width=80, elem_id="send")
                stop = gr.Button("Stop", visible=False, scale=0, min_width=80, elem_id="stop")
        status = gr.HTML("", apply_default_css=False, js_on_load=_ANNOUNCE, elem_id="status", elem_classes="unseen")

        board = [state, current, trace, sources, status]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        gr.on(
            [box.submit, send.click],
            respond,
            [box, state, picker],
            [*board, earlier, box, send, stop, picker],
            concurrency_limit=AT_ONCE,
            **private,
        )
        stop.click(halt, state, stop, **private)
        picker.input(picked, picker, [*board, earlier, report, about], **private)
        files.upload(
            index,
            [files, picker],
            [report, files, about],
            concurrency_limit=1,
            api_visibility="private",
            show_progress_on=report,
        )
        blocks.load(refreshed, picker, [picker, about], **private)
    return blocks


def _with_event(conversation: Conversation, event: Event, folder: Path) -> Conversation:
    assert conversation.turn
    turn = advance(conversation.turn, event)
    return replace(conversation, turn=turn, sources=_texts(folder, turn) if turn.answer else {})


def _failed(conversation: Conversation, why: str) -> Conversation:
    assert conversation.turn
    return replace(conversation, turn=replace(conversation.turn, failure=why, answer=None))


def _explained(error: Exception) -> str:
    """What to tell people. A bug must not take the page down either; the terminal gets its details."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


def _texts(folder: Path, turn: Turn) -> dict[str, str]:
    """The texts of the files that a turn's cards show; without those that have been deleted meanwhile."""
    assert turn.answer
    passages = [citation.passage for sentence in turn.answer.sentences for citation in sentence.citations]
    passages += [hit.passage for hit in turn.answer.nearest]
    texts = {}
    store = Store(folder)
    try:
        for path in {passage.source for passage in passages}:
            with suppress(UserError):
                texts[path] = store.source_text(path)
    finally:
        store.close()
    return texts


def _about(folder: Path) -> str:
    """The page's title, and how much there is in a collection."""
    count = files = 0
    with suppress(UserError):  # there is none yet
        store = Store(folder)
        try:
            count, files = store.count(), len(store.sources())
        finally:
            store.close()
    size = (
        f"{many(count, 'passage')} from {many(files, 'file')}"
        if count
        else "This collection is empty: add files to it."
    )
    return f"<h1>Ask a collection</h1>{_message(size)}"


def _message(text: str, *, failed: bool = False) -> str:
    return f'<p class="{"failure" if failed else "note"}">{plain(text)}</p>'
