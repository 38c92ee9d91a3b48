"""Check a built site: every address leads to a file and an anchor that are there; nothing is loaded from outside."""

import posixpath
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

TAG = re.compile(r"""<([a-zA-Z][\w-]*)((?:"[^"]*"|'[^']*'|[^'">])*)>""")
ATTRIBUTE = re.compile(r"""\s(id|name|href|src)=(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
# What these hold is text, whatever it looks like.
TEXT = re.compile(r"<(script|style|textarea)\b([^>]*)>.*?</\1>|<!--.*?-->", re.DOTALL)


def broken_links(site: Path) -> tuple[list[str], int]:
    """Return what is wrong, one line each, and how many different addresses inside the site were looked at.

    An `<a href>` may lead outside; what the browser loads by itself (script, style, picture) may not.
    """
    anchors: dict[str, set[str]] = {}
    addresses: list[tuple[str, str]] = []
    wrong = []
    for path in sorted(site.rglob("*.html")):
        page = path.relative_to(site).as_posix()
        anchors[page] = set()
        seen = set()
        for tag, name, value in _attributes(path.read_text(encoding="utf-8")):
            if name == "id" or (name == "name" and tag == "a"):
                anchors[page].add(value)
            elif name in ("href", "src") and value not in seen:
                seen.add(value)
                parts = urlsplit(value)
                if not parts.scheme and not parts.netloc:
                    addresses.append((page, value))
                elif tag != "a" and parts.scheme != "data":
                    wrong.append(f"{page}: loads {value} from outside")
    for page, value in addresses:
        parts = urlsplit(value)
        name = unquote(parts.path) or posixpath.basename(page)
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), name))
        fragment = unquote(parts.fragment)
        if parts.path.startswith("/") or not (site / target).is_file():
            wrong.append(f"{page}: {value}: no such file")
        elif fragment and fragment not in anchors.get(target, set()):
            wrong.append(f"{page}: {value}: no such anchor")
    return wrong, len(addresses)


def _attributes(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (tag, attribute, value) of those that name or lead somewhere. html.parser takes six times as long."""
    text = TEXT.sub(lambda match: f"<{match[1]}{match[2]}>" if match[1] else "", text)
    for tag in TAG.finditer(text):
        for name, *values in ATTRIBUTE.findall(tag[2]):
            yield tag[1].lower(), name, unescape("".join(values))
