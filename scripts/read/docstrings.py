"""Docstrings as Markdown: ours are plain text, written for an editor."""

import re
from collections.abc import Iterable


def markdown(text: str, names: Iterable[str] = ()) -> str:
    """Return a docstring as Markdown: nothing in it is HTML or a link, and a line "name: what it is" an item of a list.

    names: the parameters or attributes that such lines are about.
    """
    parts = re.split(r"(`[^`\n]*`|^    .*$)", text, flags=re.MULTILINE)  # code stays as it is
    parts[::2] = [re.sub(r"\*(?=\*)|(?<=\*)\*|\[", r"\\\g<0>", part.replace("<", "&lt;")) for part in parts[::2]]
    text = "".join(parts)
    known = "|".join(map(re.escape, names))
    if not known:
        return text
    text = re.sub(rf"^((?:{known})(?:, (?:{known}))*): ", r"- `\1`: ", text, flags=re.MULTILINE)
    return re.sub("\n- `", "\n\n- `", text, count=1)  # a list begins after an empty line
