"""What answering needs, loaded and held together: indexes, embedding model, chat model, router, graders, rerankers.

with open_resources(collection_folder("default"), graders=["embedding"]) as resources:
    for event in reflection.run("who wrote the first compiler", resources): ...
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shared.endpoint import PUBLISHED
from shared.errors import UserError
from step3_rag.chat_model import ChatModel, open_chat_model
from step3_rag.encoder import TextEncoder
from step3_rag.graders import ADAPTER, DEFAULT_GRADER, GRADERS, WITHOUT_ADAPTER, Grader, embedding, overlap, yes_or_no
from step3_rag.index import Index
from step3_rag.rerank import DEFAULT_RERANKER, Reranker, load_reranker
from step3_rag.routing import Router

if TYPE_CHECKING:
    from shared.endpoint import Endpoint

ADAPTER_FOLDER = PUBLISHED / ADAPTER  # where step 4 puts it


@dataclass(frozen=True)
class Resources:
    """What answering needs; tests put fakes in place. One may serve many questions, also at the same time."""

    index: Index
    encoder: TextEncoder
    model: ChatModel
    router: Router
    graders: Mapping[str, Grader]
    rerankers: Mapping[str, Reranker] = field(default_factory=dict)


@contextmanager
def open_resources(
    folder: Path,
    *,
    model: str | None = None,
    graders: Sequence[str] | None = None,
    rerankers: Sequence[str] = (DEFAULT_RERANKER,),
    quiet: bool = False,
) -> Iterator[Resources]:
    """Load what answering from a collection needs; an embedded engine lives as long as the block does.

    folder: of the collection. model, quiet: as shared.endpoint.connect. graders, rerankers: names, all loaded.
    graders None: the default grader. rerankers may be empty.
    Raises UserError when there is no such collection, model, grader or reranker, or no adapter for the grader of that
    name.
    """
    from shared.endpoint import connect
    from step3_rag.encoder import Encoder

    graders = [default_grader(model)] if graders is None else graders
    for name in graders:
        if name not in GRADERS:
            raise UserError(f"--grader {name!r}: use one of {', '.join(GRADERS)}")
    with ExitStack() as stack:
        index = Index(folder)  # before the model: a missing collection should be said at once
        stack.callback(index.close)
        endpoint = stack.enter_context(connect(model, _adapters(graders, model), quiet=quiet))
        encoder = Encoder(index.store.encoder)
        chat_model = open_chat_model(endpoint)
        yield Resources(
            index,
            encoder,
            chat_model,
            Router(),
            {name: _grader(name, endpoint, chat_model, encoder) for name in graders},
            {name: load_reranker(name, encoder) for name in rerankers},
        )


def default_grader(model: str | None = None) -> str:
    """Return the grader for where nobody names one: DEFAULT_GRADER, unless that is an adapter that there is not.

    model: as open_resources takes it. An endpoint elsewhere may serve the adapter; it is used there when it is named.
    """
    from shared.config import settings
    from shared.endpoint import published_adapter

    config = settings()
    if DEFAULT_GRADER == "adapter" and (
        config.openai_base_url or published_adapter(ADAPTER, model or config.model) is None
    ):
        return WITHOUT_ADAPTER
    return DEFAULT_GRADER


def _adapters(graders: Sequence[str], model: str | None) -> list[Path]:
    """The adapters that the embedded engine has to load; an endpoint elsewhere serves them, or does not."""
    from shared.config import settings
    from shared.endpoint import published_adapter

    if "adapter" not in graders or settings().openai_base_url:
        return []
    name = model or settings().model
    folder = published_adapter(ADAPTER, name)
    if folder is None:
        raise UserError(f"shared/adapters has no {ADAPTER} for {name}; train it (step 4), or use another --grader")
    return [folder]


def _grader(name: str, endpoint: "Endpoint", model: ChatModel, encoder: TextEncoder) -> Grader:
    if name == "overlap":
        return overlap
    if name == "embedding":
        return embedding(encoder)
    return yes_or_no(open_chat_model(endpoint, ADAPTER) if name == "adapter" else model)
