"""Options that every verb of step 1 has, and what every verb begins and ends with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.terminal import console, print_json

if TYPE_CHECKING:
    from shared.models import LoadedModel

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", show_default="$MODEL, else smollm2-135m",
                 help="Catalog name, checkpoint directory, or Hub id with optional @revision."),
]  # fmt: skip
Adapter = Annotated[
    Path | None, typer.Option(metavar="DIR", show_default="$ADAPTER, else none", help="LoRA adapter to put on top.")
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", show_default="$DEVICE, else auto", help="auto, cpu, cuda or mps.")
]
DType = Annotated[
    str | None,
    typer.Option(metavar="NAME", show_default="$DTYPE, else auto", help="auto, float32, bfloat16, int8 or int4."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")]
Chat = Annotated[bool, typer.Option("--chat", help="Take TEXT as a user's message and use the chat template.")]
Text = Annotated[str, typer.Argument(metavar="TEXT", show_default=False)]


def open_model(
    model: str | None, adapter: Path | None, device: str | None, dtype: str | None, json: bool
) -> "LoadedModel":
    """Load what the common options say; the loader's choices go to stderr, unless --json asks for silence."""
    from shared.models import load

    return load(model, adapter, device, dtype, quiet=json)


def finish(document: dict[str, Any], json: bool, png: Path | None = None) -> None:
    """End a verb: print its data as JSON (with the picture's path) or tell people where the picture is."""
    if json:
        print_json(document | ({} if png is None else {"png": str(png)}))
    elif png is not None:
        console().print(f"\npicture: {png}", markup=False, soft_wrap=True)
