"""The page: ask a collection, see how the answer is decided and what it stands on; add files to it.

    python -m step3_rag ui                        # http://127.0.0.1:7860, until Ctrl-C
    python -m pytest tests/step3/test_page.py -m real     # in headless Chromium

Everything comes from this machine: no font, script or picture from elsewhere, no analytics.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UserError
from shared.terminal import PALETTE, say
from step3_rag.answers import Event
from step3_rag.documents import MAX_BYTES
from step3_rag.encoder import DEFAULT_ENCODER, Encoder, TextEncoder
from step3_rag.page_layout import Ask, build
from step3_rag.store import Store

if TYPE_CHECKING:
    from step3_rag.index import Index
    from step3_rag.resources import Resources

HERE = Path(__file__).parent
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def launch(folder: Path, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until Ctrl-C. folder: the collection that is chosen at first; those beside it can be picked.

    Raises UserError when the port is taken, and as open_resources does; a collection that does not exist yet is shown
    as empty, to be filled through the page.
    """
    if host not in ("127.0.0.1", "::1", "localhost"):
        say(f"whoever reaches {host} can read these collections and add files to them: the page has no password")
    with ExitStack() as stack:
        library = Library(stack)
        if (folder / "collection.db").exists():
            library.resources(folder)  # what cannot be loaded is better said now than at the first question
        # Ctrl-C may come before print returns.
        with serving(folder, library.ask, library.encoder, host, port) as address, suppress(KeyboardInterrupt):
            print(f"{address}  (Ctrl-C ends it)", flush=True)
            threading.Event().wait()


class Library:
    """The collections that the page has opened, with one model for all. Closed with the stack; threads may share it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._lock = threading.RLock()
        self._shared: Resources | None = None
        self._indexes: dict[Path, Index] = {}
        self._encoders: dict[str, TextEncoder] = {}

    def ask(self, question: str, history: Sequence[tuple[str, str]], folder: Path) -> Iterator[Event]:
        """Answer a question, made stand-alone where it leans on the history; raises as reflection.run does."""
        from step3_rag.reflection import Reflection, run
        from step3_rag.rewriting import standalone

        resources = self.resources(folder)
        settings = Reflection(grader=next(iter(resources.graders)))
        yield from run(standalone(resources.model, question, history).query, resources, settings)

    def resources(self, folder: Path) -> "Resources":
        """What answering from a collection needs; the model is loaded with the first."""
        from step3_rag.index import Index
        from step3_rag.resources import open_resources

        with self._lock:
            if self._shared is None:
                self._shared = self._stack.enter_context(open_resources(folder))
                self._indexes[folder] = self._shared.index
                self._encoders[self._shared.encoder.name] = self._shared.encoder
            if folder not in self._indexes:
                self._indexes[folder] = Index(folder)
                self._stack.callback(self._indexes[folder].close)
            return replace(self._shared, index=self._indexes[folder], encoder=self.encoder(folder))

    def encoder(self, folder: Path) -> TextEncoder:
        """The model that a collection was embedded with, or the default one for a collection yet to be made."""
        name = DEFAULT_ENCODER
        with suppress(UserError):
            store = Store(folder)
            name = store.encoder
            store.close()
        with self._lock:
            if name not in self._encoders:
                self._encoders[name] = Encoder(name)
            return self._encoders[name]


@contextmanager
def serving(folder: Path, ask: Ask, encoder: Callable[[Path], TextEncoder], host: str, port: int) -> Iterator[str]:
    """Serve the page from a thread and yield its address. Raises UserError when the port is taken."""
    # Gradio reads both from the environment only. Its own upload folder is shared by all users and never emptied.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="step3-uploads-") as incoming:
        os.environ["GRADIO_TEMP_DIR"] = incoming
        blocks = build(folder, ask, encoder)
        colours = "".join(f"--{name}: {value};" for name, value in PALETTE.items())
        style = f":root {{ {colours} }}\n{(HERE / 'page.css').read_text()}"
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                quiet=True,
                max_file_size=MAX_BYTES,
                theme=_theme(),
                # Not as css=, which Gradio rewrites: each selector would get a prefix, :root and .dark too.
                head=f"<style>{style}</style>",
            )
        except OSError:
            raise UserError(f"port {port} is taken on {host}; choose another with --port") from None
        try:
            yield address
        finally:
            blocks.close(verbose=False)


def _theme() -> Any:
    """Gradio's plainest theme in the colours and fonts of the reports, page.css in both schemes."""
    import gradio as gr

    colours = {
        "body_background_fill": "var(--ground)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--muted)",
        "background_fill_primary": "var(--ground)",
        "background_fill_secondary": "var(--surface)",
        "block_background_fill": "var(--ground)",
        "block_border_color": "var(--line)",
        "block_label_text_color": "var(--muted)",
        "block_title_text_color": "var(--muted)",
        "border_color_primary": "var(--line)",
        "border_color_accent": "var(--accent)",
        "color_accent": "var(--accent)",
        "input_background_fill": "var(--surface)",
        "input_border_color": "var(--field)",
        "input_border_color_focus": "var(--accent)",
        "input_placeholder_color": "var(--muted)",
        "button_primary_background_fill": "var(--button)",
        "button_primary_background_fill_hover": "var(--button)",
        "button_primary_text_color": "#fff",
        "button_secondary_background_fill": "var(--surface)",
        "button_secondary_text_color": "var(--ink)",
        "button_secondary_border_color": "var(--field)",
        "loader_color": "var(--accent)",
    }
    theme = gr.themes.Base(font=FONT, font_mono=MONO, text_size=gr.themes.sizes.text_lg)
    dark = {f"{name}_dark": value for name, value in colours.items() if hasattr(theme, f"{name}_dark")}
    return theme.set(**colours, **dark)
