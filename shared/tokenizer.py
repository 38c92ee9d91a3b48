"""Text to token ids and back, and chat messages to the exact text the model was trained on.

Uses the `tokenizers` library (the one inside transformers) and renders chat templates with Jinja the way transformers
does, which spares every command the 3–10 s that importing transformers' tokenizer classes takes. Parity is tested.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UserError

if TYPE_CHECKING:
    import jinja2
    from tokenizers import Encoding

Message = Mapping[str, Any]


class ChatTokenizer:
    """The tokenizer and chat template of one model directory."""

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        path = directory / "tokenizer.json"
        if not path.exists():
            raise UserError(f"{directory} has no tokenizer.json; save it with transformers' fast tokenizer first")
        try:
            self.backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for a file it cannot parse
            raise UserError(f"{path} cannot be read: {error}") from None
        self.backend.no_truncation()
        self.backend.no_padding()
        self._special = _special_tokens(directory)
        self._template_source = _template_source(directory)
        self.template_path = str(directory)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return token ids. add_special adds what the tokenizer's post-processor adds (a BOS, for some models)."""
        return list(self._encoding(text, add_special).ids)

    def spans(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Return (token id, (first byte, byte after last)) per token, in UTF-8 bytes of `text`."""
        encoding = self._encoding(text, False)
        byte_at = [0]
        for character in text:
            byte_at.append(byte_at[-1] + len(character.encode()))
        return [(i, (byte_at[a], byte_at[b])) for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)]

    def _encoding(self, text: str, add_special: bool) -> "Encoding":
        try:
            return self.backend.encode(text, add_special_tokens=add_special)
        except TypeError:  # unpaired surrogates: invalid bytes on a command line, or "\\ud800" in JSON
            raise UserError("the text is not valid Unicode (it has bytes that are not UTF-8)") from None

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of ids; bytes that are not yet valid UTF-8 come out as U+FFFD."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def piece(self, token_id: int) -> str:
        """Return one token as text; a token that is part of a character comes out as its bytes, like `<0xE2 0x82>`."""
        text = self.decode([token_id])
        if "\ufffd" not in text:
            return text
        return "<" + " ".join(f"0x{b:02X}" for b in self.token_bytes[token_id]) + ">"

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each token id stands for (byte-level BPE; other tokenizers fall back to the decoded text)."""
        table, vocabulary = _byte_of_character(), self.backend.get_vocab(with_added_tokens=True)
        added = {token.content for token in self.backend.get_added_tokens_decoder().values()}
        result = [b""] * (max(vocabulary.values()) + 1)
        for token, index in vocabulary.items():
            if token not in added and all(c in table for c in token):
                result[index] = bytes(table[c] for c in token)
            else:
                result[index] = token.replace("▁", " ").encode()
        return result

    def stream(self) -> Callable[[int], str]:
        """Return a function that takes the next token id and returns the text that became complete with it."""
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(skip_special_tokens=True)
        return lambda token_id: decoder.step(self.backend, token_id) or ""

    def is_special(self, token_id: int) -> bool:
        """Whether this id is a control token (end of turn, padding …) rather than text."""
        token = self.backend.get_added_tokens_decoder().get(token_id)
        return token is not None and token.special

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the prompt text for chat messages. Raises UserError when the model has no template or it refuses."""
        import jinja2

        try:
            return self._template.render(
                messages=messages, tools=tools or None, add_generation_prompt=add_generation_prompt, **self._special
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise UserError(f"the chat template cannot render these messages: {error}") from None

    @cached_property
    def _template(self) -> "jinja2.Template":
        if self._template_source is None:
            raise UserError(f"{self.template_path} has no chat template; only plain completion works with this model")
        environment = _environment()
        return environment.from_string(self._template_source)


def _environment() -> "jinja2.Environment":
    """A sandboxed Jinja environment with the functions transformers offers to templates."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)  # Jinja's own would escape <, > and &

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment


def _template_source(directory: Path) -> str | None:
    """The chat template: its own file since transformers 4.50, inside tokenizer_config.json before."""
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text()
    template = _tokenizer_config(directory).get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    return template


def _special_tokens(directory: Path) -> dict[str, str]:
    """bos_token, eos_token …, which templates refer to by name."""
    result = {}
    for key, value in _tokenizer_config(directory).items():
        if key.endswith("_token") and value is not None and not isinstance(value, bool):
            result[key] = value["content"] if isinstance(value, dict) else value
    return result


def _tokenizer_config(directory: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((directory / "tokenizer_config.json").read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{directory / 'tokenizer_config.json'} is not valid JSON: {error}") from None
    return config


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, inverted: printable bytes are themselves, others U+0100 and up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in printable}
    table.update({chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in printable)})
    return table
