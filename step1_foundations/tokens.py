"""What the model reads instead of text: token ids, the bytes each one covers, and the chat template around a turn.

    python -m step1_foundations tokens "naïve café 🙂"
    python -m step1_foundations tokens "Hello" --chat            # what the template adds around your words
    python -m step1_foundations tokens "Hello" --compare DIR     # the same text, cut by another model's tokenizer

A byte-level BPE token is a run of bytes, not of characters: one emoji may take several tokens, none of which is text
by itself. Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.errors import UserError
from shared.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Any text that no template contains: rendering it once shows where a template puts the user's words.
MARKER = "\u2063where the words go\u2063"


@dataclass(frozen=True)
class Token:
    """One token. span: (first byte, byte after the last) in the UTF-8 text; None for a token that covers no text.

    source: "text" (the user's words), "template" (put around them by the chat template) or "added" (a BOS or EOS that
    the tokenizer adds to plain text). special: a control token, which the model was taught to read as structure.
    """

    id: int
    piece: str
    span: tuple[int, int] | None
    special: bool
    source: str


@dataclass(frozen=True)
class Tokenization:
    """A text and its tokens. The two rates count the tokens of the user's words only, not those put around them."""

    model: str
    vocabulary: int
    text: str
    tokens: list[Token]
    characters_per_token: float
    bytes_per_token: float


def prompt_ids(tokenizer: ChatTokenizer, text: str, *, chat: bool = False, limit: int | None = None) -> list[int]:
    """Return the ids the model reads for `text`, as plain text (with the tokenizer's BOS, if any) or as a user's turn.

    limit: most tokens allowed, for verbs whose work grows with the square. Raises UserError when empty or too long.
    """
    if not text:
        raise UserError("TEXT is empty; give at least one character")
    if chat:
        ids = tokenizer.encode(tokenizer.render([{"role": "user", "content": text}]))
    else:
        ids = tokenizer.encode(text, add_special=True)
    if limit is not None and len(ids) > limit:
        raise UserError(f"TEXT is {len(ids)} tokens long, the limit here is {limit}; shorten it")
    return ids


def tokenize(tokenizer: ChatTokenizer, model: str, text: str, *, chat: bool = False) -> Tokenization:
    """Return the tokens of `text` with their bytes; chat: of the whole prompt that asks the model to answer `text`.

    model: the name to show. Raises UserError when the text is empty or chat is asked of a model without a template.
    """
    if not text:
        raise UserError("TEXT is empty; give at least one character")
    whole, words = text, (0, len(text.encode()))
    if chat:
        whole, words = _render(tokenizer, text)
    tokens = []
    for token_id, span in byte_spans(tokenizer, whole):
        inside = span[0] < words[1] and span[1] > words[0]
        source = "text" if inside else "template"
        tokens.append(Token(token_id, tokenizer.piece(token_id), span, tokenizer.is_special(token_id), source))
    if not chat:
        tokens = _with_added(tokenizer, text, tokens)
    mine = max(1, sum(token.source == "text" for token in tokens))
    vocabulary: int = tokenizer.backend.get_vocab_size()
    return Tokenization(model, vocabulary, whole, tokens, len(text) / mine, len(text.encode()) / mine)


def byte_spans(tokenizer: ChatTokenizer, text: str) -> list[tuple[int, tuple[int, int]]]:
    """Return (id, (first byte, byte after the last)) per token; joined in order, the spans give back the whole text.

    The tokenizer library reports character offsets, which overlap where a character is split; adding up each token's
    own bytes does not. Where the tokenizer rewrites the text first (Unicode normalisation, a space put in front) the
    bytes do not add up to the text, and the library's offsets are what there is.
    """
    spans = tokenizer.spans(text)
    own = [tokenizer.token_bytes[token_id] for token_id, _ in spans]
    if b"".join(own) != text.encode():
        return spans
    result, start = [], 0
    for (token_id, _), chunk in zip(spans, own, strict=True):
        result.append((token_id, (start, start + len(chunk))))
        start += len(chunk)
    return result


def _render(tokenizer: ChatTokenizer, text: str) -> tuple[str, tuple[int, int]]:
    """Return the rendered user turn and the byte span of `text` in it (templates may trim white space around it)."""
    rendered = tokenizer.render([{"role": "user", "content": text}])
    before = tokenizer.render([{"role": "user", "content": MARKER}]).partition(MARKER)[0]
    content = text if text in rendered[len(before) :] else text.strip()
    at = rendered.find(content, len(before))
    if at < 0:  # a template that rewrites what it is given: nothing can be called the user's own
        return rendered, (0, 0)
    first = len(rendered[:at].encode())
    return rendered, (first, first + len(content.encode()))


def _with_added(tokenizer: ChatTokenizer, text: str, tokens: list[Token]) -> list[Token]:
    """Add the tokens the tokenizer puts around plain text (a BOS, for some models), which cover no bytes."""
    full, plain = tokenizer.encode(text, add_special=True), [token.id for token in tokens]
    extra = len(full) - len(plain)
    at = next((i for i in range(extra + 1) if full[i : i + len(plain)] == plain), None)
    if not extra or at is None:
        return tokens

    def added(ids: Sequence[int]) -> list[Token]:
        return [Token(i, tokenizer.piece(i), None, tokenizer.is_special(i), "added") for i in ids]

    return [*added(full[:at]), *tokens, *added(full[at + len(plain) :])]


def visible(piece: str) -> str:
    """Return a piece with white space drawn (· space, ⏎ line end, ⇥ tab) and control characters escaped."""
    drawn = piece.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in drawn)


def print_tokens(out: "Console", result: Tokenization) -> None:
    """Print one tokenization as a table, and for a chat turn the rendered prompt above it."""
    from rich.table import Table

    chat = any(token.source == "template" for token in result.tokens)
    if chat:
        out.print("[bold]The prompt the template makes[/bold]")
        out.print(_coloured(result.tokens, line_ends=True))
        out.print()
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("#", "id", "bytes"):
        table.add_column(name, justify="right")
    table.add_column("piece", overflow="fold")
    table.add_column("from")
    for index, token in enumerate(result.tokens):
        span = "" if token.span is None else f"{token.span[0]}–{token.span[1]}"
        source = token.source + (", control token" if token.special else "")
        table.add_row(str(index), str(token.id), span, _coloured([token]), source)
    out.print(table)
    mine = sum(token.source == "text" for token in result.tokens)
    others = len(result.tokens) - mine
    around = f" + {others} around them" if others else ""
    out.print(
        f"\n{mine} tokens{around}, {result.characters_per_token:.2f} characters and "
        f"{result.bytes_per_token:.2f} bytes each\nvocabulary {result.vocabulary:,}"
    )


def print_comparison(out: "Console", results: list[Tokenization]) -> None:
    """Print several models' tokenizations of one text: counts in a table, then the cuts."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("model", overflow="fold")
    for name in ("vocabulary", "tokens", "chars/token", "bytes/token"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.model,
            f"{result.vocabulary:,}",
            str(len(result.tokens)),
            f"{result.characters_per_token:.2f}",
            f"{result.bytes_per_token:.2f}",
        )
    out.print(table)
    for result in results:
        out.print(f"\n[bold]{result.model}[/bold]")
        out.print(_coloured(result.tokens, separator="|"))


def _coloured(tokens: Sequence[Token], *, separator: str = "", line_ends: bool = False) -> "Text":
    """Pieces one after the other; what the template or tokenizer added is grey, control tokens are vermilion."""
    from rich.text import Text

    from shared.terminal import PALETTE

    text = Text(overflow="fold")
    for index, token in enumerate(tokens):
        style = PALETTE["vermilion"] if token.special else "" if token.source == "text" else PALETTE["grey"]
        piece = visible(token.piece)
        text.append(piece.replace("⏎", "⏎\n") if line_ends else piece, style)
        if separator and index + 1 < len(tokens):
            text.append(separator, PALETTE["sky"])
    return text
