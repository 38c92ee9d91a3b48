"""The page at `/`: a chat playground and live operation charts, one self-contained document.

    make step5, then open http://127.0.0.1:8080/

No framework, no build step, no request to anywhere but this service: page.html with page.css and three scripts in it.
Models write what others tell them to write, so the page is made to be harmless even if it had a bug: its policy allows
these scripts only (by hash), connections to this service only, and no text to become markup (trusted types); no site
may frame it. The API key is typed by the user, lives in the tab's sessionStorage and is sent as a header.

Who may see what: the page itself is for anybody, since it holds nothing; models, chat and usage take a key; /live says
about the business what /metrics says, so the same rule holds: this machine, or a key.
"""

import base64
import re
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Response

from shared.terminal import PALETTE
from step5_serving.embeddings import MODEL
from step5_serving.web.live import Live

SCRIPTS = ("page.js", "chat.js", "charts.js")  # in this order, as one module


def add_page(app: FastAPI, live: Live, operator: Callable[..., Awaitable[None]]) -> None:
    """Add `/` and `/live`. operator: a dependency that refuses who may not see the figures of the service."""
    page, policy = render()
    headers = {
        "content-security-policy": policy,
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html", headers=headers)

    @app.get("/live", include_in_schema=False, dependencies=[Depends(operator)])
    async def figures(response: Response, after: Annotated[float, Query(allow_inf_nan=False)] = 0) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        return live.document(after)


def render() -> tuple[str, str]:
    """Return the page, and the content security policy that fits it."""
    here = Path(__file__).parent

    def read(name: str) -> str:
        return (here / name).read_text("utf-8")

    palette = ":root { " + " ".join(f"--{name}: {colour};" for name, colour in PALETTE.items()) + " }\n"
    parts = {
        "style": palette + read("page.css"),
        "script": "".join(map(read, SCRIPTS)),
        "embedding_model": MODEL,  # in the list of models, but not for chat
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], read("page.html"))
    policy = {
        "default-src": "'none'",
        "style-src": _hash(parts["style"]),
        "script-src": _hash(parts["script"]),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return page, "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
