"""One page with everything step 1 can show about a text: self-contained, interactive, works without a network.

    python -m step1_foundations report "The capital of France is" -o report.html

The analyses are the other verbs'; this file makes their results small (a 16-token page of SmolLM2's 270 heads stays
under 200 kB) and puts them into a page (shared/report/page.py): the sections of report.html, which the report*.js fill,
and report.css. The text is other people's words, so it enters the page escaped only, as markup and as JSON.
"""

import base64
import datetime
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from shared.errors import UserError
from shared.provenance import hardware, versions
from shared.report.page import page, save
from shared.sampling import Sampling
from shared.terminal import console
from step1_foundations.attention import LABELS, THRESHOLD, AttentionReport, attention
from step1_foundations.attribution import AblationReport, LensReport, ablate, lens
from step1_foundations.generate import ALTERNATIVES, SURENESS, answer
from step1_foundations.load_report import components
from step1_foundations.next_token import entropy, logits_of, score_target, target_ids
from step1_foundations.plots import dense_maps
from step1_foundations.tokens import Tokenization, prompt_ids, tokenize

if TYPE_CHECKING:
    from shared.models import LoadedModel

MAX_TOKENS = 64  # maps grow with the square: 64 tokens of SmolLM2 make a page of about 1 MB
SHOWN = 200  # next tokens the page knows by name
GROUP = 32  # all others are sorted and averaged in groups of neighbours
CONTINUATION = 40  # tokens
SCRIPTS = ("report.js", "report_next.js", "report_attention.js", "report_tables.js")  # in this order
SECTIONS = {"load": "Load", "tokens": "Tokens", "next": "Next token", "attention": "Attention", "lens": "Logit lens",
            "ablation": "Ablation", "continuation": "Continuation"}  # fmt: skip

Step = Callable[[str], None]
Track = Callable[[range], Iterable[int]]


def write_report(path: Path, model: "LoadedModel", text: str, *, chat: bool = False, target: str | None = None) -> None:
    """Analyse `text` and write the page to `path`; arguments and errors as `build_report`.

    Raises UserError also when the file cannot be written there, before any work where that is visible beforehand.
    """
    there = next(place for place in [path, *path.absolute().parents] if place.exists())
    if path.is_dir() or (there != path and not there.is_dir()) or not os.access(there, os.W_OK):
        raise UserError(f"{path}: cannot be written; choose another file with --output")
    save(path, build_report(model, text, chat=chat, target=target))


def build_report(model: "LoadedModel", text: str, *, chat: bool = False, target: str | None = None) -> str:
    """Return the page as HTML.

    chat: take `text` as a user's message, with the template around it. target: the word that the ablation explains;
    without it, the likeliest next token that is a word. A progress bar appears on stderr when that is a terminal.
    Raises UserError when the text is empty or longer than MAX_TOKENS, or the target is empty.
    """
    return render(collect(model, text, chat=chat, target=target))


def collect(model: "LoadedModel", text: str, *, chat: bool = False, target: str | None = None) -> dict[str, Any]:
    """Run all analyses and return what the page shows, as JSON-ready data (report.js reads it; bytes are base64)."""
    prompt_ids(model.tokenizer, text, chat=chat, limit=min(MAX_TOKENS, model.config.context))
    tokenization = tokenize(model.tokenizer, model.name, text, chat=chat)
    ids = [token.id for token in tokenization.tokens]
    with progress(6 + model.config.layers) as (step, track):
        step("next token")
        logits = logits_of(model, ids)[-1]
        word = target if target is not None else likeliest_word(model, logits)
        distribution = next_data(model, ids, logits, target)
        step("attention")
        maps = attention_data(attention(model, ids))
        step("logit lens")
        layers = lens_data(lens(model, ids))
        step("ablation")
        parts = ablation_data(ablate(model, ids, word, track), asked=target is not None)
        step("continuation")
        story = continuation_data(model, ids)
        step("page")
        return {
            "text": text,
            "made": made(model),
            "commands": commands(model, text, tokenization.text, chat, target, parts["target"]),
            "load": load_data(model),
            "tokens": token_data(model, tokenization),
            "next": distribution,
            "attention": maps,
            "lens": layers,
            "ablation": parts,
            "continuation": story,
        }


@contextmanager
def progress(total: int) -> Iterator[tuple[Step, Track]]:
    """Yield a function that names the next step, and one that wraps the ablation's loop over layers."""
    from rich.progress import Progress

    out = console(stderr=True)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("report", total=total)

        def step(name: str) -> None:
            bar.update(task, advance=1, description=name)

        def track(layers: range) -> Iterator[int]:
            for layer in layers:
                yield layer
                bar.update(task, advance=1)

        yield step, track


def made(model: "LoadedModel") -> dict[str, Any]:
    """What made the page: model, the loader's choices with reasons, date, versions. No paths of this machine."""
    private = {"model", "adapter"}  # their reasons are directories
    choices = [
        {"what": c.what, "value": c.value, "reason": "" if c.what in private else c.reason} for c in model.choices
    ]
    return {
        "model": model.name,
        "choices": choices[1:],
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "cpu": hardware()["cpu"],
        "versions": versions("torch", "tokenizers"),
        "layers": model.config.layers,
        "heads": model.config.heads,
        "labels": LABELS,
        "threshold": THRESHOLD,
    }


def commands(model: "LoadedModel", text: str, prompt: str, chat: bool, target: str | None, word: str) -> dict[str, str]:
    """The exact command behind each section, with the options this page was made with.

    prompt: the text as the model reads it, which is what verbs without --chat are given.
    """
    options: list[str] = []
    for choice in model.choices:
        if choice.what == "model" and choice.value != "smollm2-135m":
            options += ["--model", choice.value]
        elif choice.what == "adapter":
            options += ["--adapter", choice.reason.rpartition(" from ")[2]]
        elif choice.what in ("device", "dtype") and choice.reason == "asked for":
            options += [f"--{choice.what}", choice.value]
    as_chat = ["--chat"] if chat else []

    def line(verb: str, *arguments: str) -> str:
        return shlex.join(["python", "-m", "step1_foundations", verb, *arguments, *options])

    return {
        "load": line("load"),
        "tokens": line("tokens", text, *as_chat),
        "next": line("next", text, *as_chat),
        "attention": line("attention", prompt),
        "lens": line("lens", prompt),
        "ablate": line("ablate", prompt, "--target", word.strip()),
        "generate": line("generate", text, *([] if chat else ["--raw"]), "--explain"),
        "report": line("report", text, *as_chat, *([] if target is None else ["--target", target])),
    }


def load_data(model: "LoadedModel") -> dict[str, Any]:
    """Parameters and bytes by component, KV cache, load time."""
    return {
        "components": [
            {"name": c.name, "parameters": c.parameters, "bytes": c.bytes, "copy": c.prefill_bytes}
            for c in components(model)
        ],
        "kv": model.config.kv_bytes_per_token(model.transformer.dtype.itemsize),
        "context": model.config.context,
        "seconds": round(model.seconds, 2),
    }


def token_data(model: "LoadedModel", result: Tokenization) -> dict[str, Any]:
    """The text's tokens with their bytes in hexadecimal."""
    hexadecimal = model.tokenizer.token_bytes
    return {
        "vocabulary": result.vocabulary,
        "rate": result.characters_per_token,
        "list": [
            {
                "id": token.id,
                "piece": token.piece,
                "span": token.span,
                "special": token.special,
                "source": token.source,
                "bytes": hexadecimal[token.id].hex(" "),
            }
            for token in result.tokens
        ],
    }


def next_data(model: "LoadedModel", ids: list[int], logits: Tensor, target: str | None) -> dict[str, Any]:
    """The whole next-token distribution in a few kB, for the page to filter at any temperature.

    logits: [vocabulary]. Stored relative to the largest: the first SHOWN one by one, with id and piece, all others in
    sorted groups of GROUP, each as the one logit that has its members' mean probability.
    """
    ordered = (logits - logits.max()).double().sort(descending=True)
    count = min(SHOWN, len(ordered.values))
    rest = ordered.values[count:]
    means = [float(group.logsumexp(0)) - float(np.log(len(group))) for group in rest.split(GROUP)] if len(rest) else []
    shown = ordered.indices[:count].tolist()
    result: dict[str, Any] = {
        "ids": shown,
        "pieces": [model.tokenizer.piece(i) for i in shown],
        "logits": [round(value, 5) for value in ordered.values[:count].tolist()],
        "rest": [round(mean, 3) for mean in means],
        "group": GROUP,
        "last": len(rest) % GROUP or GROUP,  # members of the last group
        "entropy": entropy(logits.softmax(-1)),
        "target": None,
    }
    if target is not None:
        scored = score_target(model, ids, target, logits)
        result["target"] = {"text": scored.text, "rank": scored.rank, "probability": scored.probability}
    return result


def likeliest_word(model: "LoadedModel", logits: Tensor) -> str:
    """Return the text of the likeliest token that can be given to `ablate` as a word: not white space, whole bytes."""
    for token in logits.topk(min(SHOWN, logits.numel())).indices.tolist():
        word = model.tokenizer.decode([token])
        if word.strip() and target_ids(model.tokenizer, word, logits) == [token]:
            return word
    raise UserError("none of the likeliest next tokens is a word; name the one to explain with --target WORD")


def attention_data(result: AttentionReport) -> dict[str, Any]:
    """Maps as one byte per weight (rounded to 1/255), lower triangles only, row after row, head after head."""
    maps = dense_maps(result)
    rows, columns = np.tril_indices(maps.shape[-1])
    weights = np.rint(maps[:, :, rows, columns] * 255).astype(np.uint8)
    return {
        "maps": base64.b64encode(weights.tobytes()).decode(),
        "labels": [head.label for head in result.heads],
        "scores": [[round(getattr(head, name), 3) for name in LABELS] for head in result.heads],
    }


def lens_data(result: LensReport) -> dict[str, Any]:
    """Cells [layers + 1][tokens] of [index into `pieces`, probability, the answer's rank, the answer's probability]."""
    pieces: dict[str, int] = {}
    cells = [
        [
            [
                pieces.setdefault(cell.piece, len(pieces)),
                round(cell.probability, 4),
                cell.answer_rank,
                round(cell.answer_probability, 4),
            ]
            for cell in row
        ]
        for row in result.cells
    ]
    return {"pieces": list(pieces), "answers": result.answers, "cells": cells}


def ablation_data(result: AblationReport, *, asked: bool) -> dict[str, Any]:
    """Change of the target's log-probability [layers][heads + 1], the MLP last."""
    return {
        "target": result.target,
        "asked": asked,
        "logprob": result.logprob,
        "change": [[round(value, 4) for value in row] for row in result.change],
        "seconds": round(result.seconds, 1),
    }


def continuation_data(model: "LoadedModel", ids: list[int]) -> dict[str, Any]:
    """What the model writes next, greedily; as many tokens as fit the context, at most CONTINUATION."""
    from shared.engine import Engine

    room = min(CONTINUATION, model.config.context - len(ids))
    tokens: list[dict[str, Any]] = []
    finish = "length"
    if room:
        result = answer(Engine(model), ids, Sampling(temperature=0), room, lambda event: None)
        tokens, finish = result.tokens, result.finish
    if finish == "interrupted":  # `answer` keeps a session alive; a report half made is none
        raise KeyboardInterrupt
    return {
        "finish": finish,
        "sureness": SURENESS,
        "tokens": [
            {
                "piece": token["token"],
                "special": model.tokenizer.is_special(token["id"]),
                "probability": round(token["probability"], 4),
                "top": [[top["token"], round(top["probability"], 4)] for top in token["top"][:ALTERNATIVES]],
            }
            for token in tokens
        ],
    }


def render(data: dict[str, Any]) -> str:
    """Put data into the page. Every `<` of the data is escaped, so no text can end the script element it is in."""
    here = Path(__file__).parent
    escaped = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        escaped = escaped.replace(character, f"\\u{ord(character):04x}")
    scripts = "\n".join((here / name).read_text("utf-8") for name in SCRIPTS)
    made, size = data["made"], len(data["tokens"]["list"])
    amount = f"these {size} tokens" if size > 1 else "this one token"
    return page(
        title=f"{' '.join(data['text'].split())[:60]} · inside {made['model']}",
        overline="Inside a language model",
        heading=data["text"],
        summary=f"What <b>{escape(made['model'])}</b> does with {amount}, looked at from inside: {made['layers']} "
        f"layers of {made['heads']} heads, each number on this page measured.",
        facts=facts(made),
        sections=SECTIONS,
        main=(here / "report.html").read_text("utf-8"),
        footer=f'<p>Made on {escape(made["date"])} by <code data-command="report"></code></p>\n'
        "<p>Attention is rounded to 1/255. The inspected passes are written out where normal ones are fused, so "
        "rounding differs and a probability may differ by a percent or so between sections when weights are "
        "quantised.</p>",
        style=(here / "report.css").read_text("utf-8"),
        script=f'<script type="application/json" id="data">{escaped}</script>\n<script>\n{scripts}\n</script>',
    )


def facts(made: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The loader's choices with reasons, when and on what, versions: the head's facts."""
    rows = [(choice["what"], choice["value"], choice["reason"]) for choice in made["choices"]]
    rows.append(("made", made["date"], made["cpu"]))
    others = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if name != "python")
    return [*rows, ("versions", f"Python {made['versions']['python']}", others)]
