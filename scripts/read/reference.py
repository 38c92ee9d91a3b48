"""What mkdocstrings gets to render: the extension that book.yml names."""

from pathlib import Path
from typing import Any

import griffe

from scripts.read.docstrings import markdown


class Lines(griffe.Extension):
    """Prepare the docstrings that mkdocstrings renders; each ends with a link to its object's line on the page."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None or obj.is_module:
            return
        names = [p.name.lstrip("*") for p in obj.parameters] if isinstance(obj, griffe.Function) else list(obj.members)
        # With the page's name: mkdocstrings gives addresses that begin with # a prefix.
        line = f"[line {obj.lineno}]({Path(str(obj.filepath)).name}.md#L{obj.lineno})"
        obj.docstring.value = f"{markdown(obj.docstring.value, names)}\n\n{line}"
