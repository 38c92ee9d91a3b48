"""Chapter 1: load the model and look inside, with step 1's analyses."""

import math
from typing import TYPE_CHECKING, Any

from scripts.tour.findings import Chapter, Facts, Picture, Stage, Table, Talk, Text
from scripts.tour.pictures import BLUE, PURPLE, VERMILION, bars, heat, roles

if TYPE_CHECKING:
    from shared.models import LoadedModel

QUESTION = "Explain in one sentence what a neural network is."
SENTENCE = "The capital of France is"
SHOWN = 8  # next tokens
ANSWER = 96  # tokens


def perform(stage: Stage) -> None:
    """Load twice for the figures and once to use; answer a question; analyse a sentence."""
    from step1_foundations.load_report import measure_load, size

    loading = measure_load(stage.model, quiet=True)  # first: it times importing torch, where nobody has yet
    from shared.models import load
    from step1_foundations.report import collect
    from step1_foundations.tokens import visible

    imported = "imported before" if loading.import_seconds is None else f"{loading.import_seconds:.1f} s to import"
    stage.show(
        Facts(
            [
                ("model", loading.model, f"{loading.parameters:,} parameters"),
                ("load", f"{loading.cold_seconds:.2f} s", f"again {loading.warm_seconds:.2f} s; torch {imported}"),
                ("memory", size(loading.measured), f"predicted {size(loading.predicted)}"),
                ("KV cache", f"{size(loading.kv_bytes_per_token)} a token", f"context {loading.context:,} tokens"),
            ]
        )
    )
    model = load(stage.model, quiet=True)
    _speak(stage, model)
    data = collect(model, SENTENCE)
    stage.show(Text(f"Now one sentence under the microscope: “{SENTENCE}”."))
    tokens = data["tokens"]["list"]
    rows = [[visible(token["piece"]), str(token["id"]), token["bytes"]] for token in tokens]
    stage.show(Table(f"What the model reads: {len(tokens)} of {data['tokens']['vocabulary']:,} tokens",
                     ["token", "number", "bytes"], rows))  # fmt: skip
    stage.show(_next(data["next"]))
    stage.show(_heads(data))
    stage.show(_lens(data["lens"]))
    stage.show(_ablation(data["ablation"]))


def _speak(stage: Stage, model: "LoadedModel") -> None:
    from shared.engine import Engine
    from shared.sampling import Sampling
    from step1_foundations.generate import answer

    tokenizer = model.tokenizer
    prompt = tokenizer.encode(tokenizer.render([{"role": "user", "content": QUESTION}]))
    found = answer(Engine(model), prompt, Sampling(temperature=0), ANSWER, lambda _: None)
    if found.finish == "interrupted":  # step 1's chat goes on after Ctrl-C, the tour does not
        raise KeyboardInterrupt
    stage.show(Talk([("you", QUESTION), (model.name, found.text.strip())]))
    stage.show(
        Facts(
            [
                ("first token", f"{found.ttft * 1000:.0f} ms", f"{found.prompt_tokens} prompt tokens"),
                ("speed", f"{found.decode_tokens_per_second:.0f} tok/s", f"{len(found.tokens)} tokens, one request"),
            ]
        )
    )


def probabilities(found: dict[str, Any]) -> list[float]:
    """The probabilities of the tokens that step 1's page names, from its relative logits and its groups of others."""
    rest = [(found["group"], value) for value in found["rest"]]
    if rest:
        rest[-1] = (found["last"], rest[-1][1])
    total = sum(math.exp(value) for value in found["logits"]) + sum(n * math.exp(value) for n, value in rest)
    return [math.exp(value) / total for value in found["logits"]]


def _next(found: dict[str, Any]) -> Picture:
    from step1_foundations.tokens import visible

    chances = probabilities(found)
    rows = [(visible(piece), p, f"{p:.1%}") for piece, p in zip(found["pieces"], chances, strict=True)][:SHOWN]
    listed = ", ".join(f"{piece.strip('·')} {words}" for piece, _, words in rows[:3])
    return Picture(
        "What comes next", bars(rows, f"The {len(rows)} likeliest next tokens"),
        f"A probability for every token it knows. The likeliest: {listed}.",
    )  # fmt: skip


def _heads(data: dict[str, Any]) -> Picture:
    made, named = data["made"], data["attention"]["labels"]
    names = ["mixed", *made["labels"]]
    heads = made["heads"]
    indices = [names.index(label) for label in named]
    picture = roles([indices[i : i + heads] for i in range(0, len(indices), heads)], names, "What each head does")
    counts = ", ".join(f"{named.count(name)} {name}" for name in names if name in named)
    return Picture(
        f"What its {len(named)} attention heads do", picture,
        f"Layers from left to right, heads from top to bottom, named by what they do on random tokens: {counts}.",
        legend=[(name, number) for number, name in enumerate(names)],
    )  # fmt: skip


def _lens(found: dict[str, Any]) -> Picture:
    """The last position of the logit lens: the likeliest token after each layer, and the final answer's share."""
    from step1_foundations.tokens import visible

    column = [row[-1] for row in found["cells"]]
    rows = [
        (f"{number}  {visible(found['pieces'][piece])}", answer, f"{answer:.1%}, rank {rank:,}")
        for number, (piece, _, rank, answer) in enumerate(column)
    ]
    first = next((n for n, cell in enumerate(column) if all(c[0] == column[-1][0] for c in column[n:])), len(column))
    said = visible(found["answers"][-1]).strip("·")
    return Picture(
        "When the answer appears", bars(rows, "Logit lens at the last token", PURPLE),
        f"The stream of numbers after each layer, read as if it were the last (logit lens): the token it would say, "
        f"and the share of “{said}”. From layer {first} on it says nothing else.",
    )  # fmt: skip


def _ablation(found: dict[str, Any]) -> Picture:
    change = found["change"]
    parts = [*(f"head {n}" for n in range(len(change[0]) - 1)), "MLP"]
    layers = [f"layer {n}" for n in range(len(change))]
    worst = min((value, i, j) for i, row in enumerate(change) for j, value in enumerate(row))
    turned = [list(column) for column in zip(*change, strict=True)]
    return Picture(
        "What the answer depends on",
        heat(turned, "Ablation", x=layers, y=parts, above=BLUE, below=VERMILION),
        f"Each head and MLP switched off once. Orange: “{found['target'].strip()}” becomes less likely without it. "
        f"Most needed: the {parts[worst[2]]} of layer {worst[1]} ({worst[0]:+.1f} nats).",
        legend=[("needed", VERMILION), ("in the way", BLUE)],
    )  # fmt: skip


CHAPTER = Chapter(
    "look",
    "Load it and look inside",
    [
        "A language model is a pile of matrices that turns a text into a probability for every next token. The one "
        "here is small enough to be taken apart on a laptop: SmolLM2 with 135 million parameters.",
        "Everything after this chapter is the same weights, asked in other ways or changed a little.",
    ],
    ["make step1", f'.venv/bin/python -m step1_foundations report "{SENTENCE}" -o report.html'],
    perform,
)
