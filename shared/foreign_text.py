"""Text that others wrote (models, tools, documents, servers), before it reaches a prompt, a request or a terminal.

    python -m pytest tests/step2/test_foreign_text.py tests/step3/test_generation.py

Each place obeys something else: a chat template's tokens open turns, a terminal follows escape sequences, and UTF-8
cannot hold half a surrogate pair. The functions here take that away and leave the text readable.
"""

import re

# C0 controls become their pictures (␛ for escape), so that one sees what was there. A carriage return goes: it is half
# of a Windows line end, or it overwrites a line. DEL, C1 controls (0x9b is an escape sequence of its own), half
# surrogate pairs and the marks that turn text around ("Trojan Source", CVE-2021-42574) become �.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t\r"}
_FORBIDDEN = [*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)]
_VISIBLE: dict[int, int | None] = {**_PICTURES, **dict.fromkeys(_FORBIDDEN, 0xFFFD), 0x0D: None}

# What opens a turn, a call or a result in published chat templates: <|…|> and <｜…｜> (most families), tags (Hermes,
# Qwen, MiniMax, Nemotron, Claude), sentence marks (Llama 2, Gemma, GLM), and bracketed words (Mistral, GLM).
_MARKERS = re.compile(
    r"<(?=[|/]?[\w:]*(?:[|｜]|(?i:tool_?call|tool_response|tools|function|invoke|parameter|think|_of_turn|sys>))"
    r"|/?(?:s|bos|eos|pad|unk|sop|eop)>)"
    r"|\[(?=/?(?:INST|SYS|TOOL|AVAILABLE_TOOL|THINK|gMASK))"
)


def printable(text: str) -> str:
    """Return the text without anything a terminal would obey; line ends and tabs stay. Works piece by piece too."""
    return text.translate(_VISIBLE)


def one_line(text: str, limit: int) -> str:
    """Return the first `limit` characters of a text for the terminal, without line breaks: they could forge a line."""
    return " ".join(printable(text[:limit]).split())


def unmarked(text: str) -> str:
    """Return the text with the special tokens of known chat templates broken up by a zero-width space.

    It is as readable as before, but no longer the token. New templates bring new tokens, and a model can be persuaded
    without any: this is one defence of several. The result is `encodable`.
    """
    return _MARKERS.sub(lambda match: match[0] + "\u200b", encodable(text))


def encodable(text: str) -> str:
    """Return the text so that UTF-8 can hold it: surrogate pairs joined, halves of one replaced by �.

    Halves come from JSON's backslash-u, or from a stream that was cut inside an emoji.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
