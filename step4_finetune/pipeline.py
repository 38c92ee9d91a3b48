"""`make step4`: data → evaluate base → train → evaluate tuned → DPO → evaluate → report, on a small scale.

    python -m step4_finetune demo

Everything lies below out/step4. A stage whose output is there is skipped, and one that was killed goes on where it was
(answers by the item, training by the checkpoint), so the command can be given again at any time. Delete out/step4 to
start over.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UserError
from shared.files import atomic_write
from shared.terminal import say
from step4_finetune.data_files import FOLDER

if TYPE_CHECKING:
    from step4_finetune.columns import Entry
    from step4_finetune.dpo import Preferred
    from step4_finetune.train import Training

RECIPES = Path(__file__).parent / "recipes"

# What fits into 20 minutes on 2 CPU cores without bfloat16, 18.9 as measured (results/quick.json):
#   evaluation           four columns, LIMIT of each of 5 categories    4.8 min
#   training examples    data_files.QUICK_EXAMPLES, one epoch           9.3 min
#   answers for DPO      PROMPTS × ANSWERS                              2.2 min
#   DPO                  at most PROMPTS pairs, reference included      2.4 min
MODEL = "smollm2-135m"
TASK, LIMIT = "bfcl", 12
PROMPTS, ANSWERS = 60, 4
SFT, DPO = "SFT", "SFT + DPO"  # labels of the columns


@dataclass(frozen=True)
class Stage:
    """One step of the demo. done: whether its output is there already."""

    name: str
    done: Callable[[], bool]
    run: Callable[[], None]


@dataclass(frozen=True)
class Demo:
    """What came of it. seconds: by stage, all attempts together. preferred: change from SFT to SFT + DPO, all items."""

    table: "list[Entry]"
    preferred: dict[str, Any] | None
    pairs: int
    report: Path
    seconds: dict[str, float]


class Pipeline:
    """The stages and where they put things."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self.evaluation = folder / "demo"
        self.sft, self.dpo = folder / "tools_sft_quick", folder / "tools_dpo_quick"
        self.data, self.prompts = folder / "tools/train_quick.jsonl", folder / "tools/prompts.jsonl"
        self.pairs = folder / "tools/pairs_quick.jsonl"
        self.report = folder / "report.html"

    def stages(self) -> list[Stage]:
        """All stages in order; the report is made anew each time."""
        return [
            Stage("data", lambda: self.data.exists() and self.prompts.exists(), self._build),
            Stage("evaluate base", lambda: self._measured(""), lambda: self._evaluate(None, "")),
            Stage("train", lambda: (self.sft / "adapter").exists(), self._train),
            Stage("evaluate tuned", lambda: self._measured(SFT), lambda: self._evaluate(self.sft, SFT)),
            Stage("sample pairs", self.pairs.exists, self._sample),
            Stage("DPO", lambda: self._no_pairs() or (self.dpo / "adapter").exists(), self._prefer),
            Stage(
                "evaluate DPO",
                lambda: self._no_pairs() or self._measured(DPO),
                lambda: self._evaluate(self.dpo, DPO),
            ),
            Stage("report", lambda: False, self._report),
        ]

    def run(self) -> Demo:
        """Run what is missing, saying what is done and what is skipped. Raises what the stages raise."""
        from shared.config import settings

        if settings().openai_base_url:
            raise UserError("the demo serves the adapters that it trains itself: unset OPENAI_BASE_URL")
        # Read when the engine's grammar imports transformers, long before training would say so.
        os.environ["HF_HUB_OFFLINE"] = "1"
        stages, log = self.stages(), self.evaluation / "stages.json"
        seconds: dict[str, float] = json.loads(log.read_text()) if log.exists() else {}
        for number, stage in enumerate(stages, 1):
            if stage.done():
                say(f"[{number}/{len(stages)}] {stage.name}: there already")
                continue
            say(f"[{number}/{len(stages)}] {stage.name}")
            begun = time.perf_counter()
            try:
                stage.run()
            finally:  # what a stopped attempt took counts too
                seconds[stage.name] = seconds.get(stage.name, 0.0) + time.perf_counter() - begun
                atomic_write(log, json.dumps(seconds, indent=1))
        return self._result(seconds)

    # -- the stages ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        from step4_finetune.data_files import build

        build("tools", 0, self.folder)

    def _train(self) -> None:
        overrides = [f"data={self.data}", f"output_dir={self.sft}"]
        train_recipe(RECIPES / "tools_sft_quick.yaml", overrides)

    def _prefer(self) -> None:
        overrides = [f"data={self.pairs}", f"output_dir={self.dpo}", f"adapter={self.sft / 'adapter'}"]
        train_recipe(RECIPES / "tools_dpo_quick.yaml", overrides)

    def _sample(self) -> None:
        import asyncio

        from openai import AsyncOpenAI

        from shared.endpoint import connect
        from step4_finetune.dpo_pairs import Sampling, make_pairs, sample, spread, write_pairs
        from step4_finetune.examples import read_jsonl

        adapter = self.sft / "adapter"
        examples = spread(read_jsonl(self.prompts), PROMPTS)
        digest = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
        sampling = Sampling(adapter.name, ANSWERS, adapter=digest)
        with connect(MODEL, [adapter], quiet=True) as endpoint:

            async def draw() -> dict[str, list[dict[str, Any]]]:
                async with AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
                    return await sample(client, sampling, examples, self.pairs.with_suffix(".samples.jsonl"))

            answers = asyncio.run(draw())
        rows, report = make_pairs(examples, answers)
        atomic_write(self.pairs.with_suffix(".report.json"), json.dumps(vars(report), indent=1))
        write_pairs(rows, self.pairs)
        say(f"{report.right} of {report.answers} answers are right; {len(rows)} pairs")

    def _evaluate(self, run: Path | None, label: str) -> None:
        from shared.endpoint import connect
        from step4_finetune.columns import adapter_column, base_columns, measure
        from step4_finetune.record import record
        from step4_finetune.tables import progress_bars

        with connect(MODEL, quiet=True) as endpoint, progress_bars(quiet=False) as progress:
            if run is None:
                columns = base_columns(endpoint, TASK, ["none", "best"], "base")
            else:
                columns = [adapter_column(endpoint, run / "adapter", label)]
            entries = [measure(endpoint, c, TASK, self.evaluation, limit=LIMIT, progress=progress) for c in columns]
        record(self.evaluation, TASK, entries)

    def _report(self) -> None:
        from step4_finetune.report import write_report

        write_report(self.evaluation, self.report)

    # -- what is there -------------------------------------------------------------------------------------------------

    def _measured(self, label: str) -> bool:
        """Whether the record has the column (the base columns for "") as it would be measured now."""
        from step4_finetune.evaluation.runner import weights_digest
        from step4_finetune.record import RECORD, entries_of, read_record

        if not (self.evaluation / RECORD).exists():
            return False
        entries = [e for e in entries_of(read_record(self.evaluation), TASK) if e.limit == LIMIT]
        if not label:
            return sum(not entry.adapter for entry in entries) == 2
        run = {SFT: self.sft, DPO: self.dpo}[label]
        return any(e.label == label and e.weights == weights_digest(run / "adapter") for e in entries)

    def _no_pairs(self) -> bool:
        """Whether the samples gave no pair: the adapter answers every prompt rightly."""
        return self.pairs.exists() and not self.pairs.read_text(encoding="utf-8").strip()

    def _result(self, seconds: dict[str, float]) -> Demo:
        from step4_finetune.record import compare_entries, entries_of, read_record

        table = entries_of(read_record(self.evaluation), TASK)
        by_label = {entry.label: entry for entry in table}
        preferred = None
        if SFT in by_label and DPO in by_label:
            change = compare_entries(self.evaluation, TASK, by_label[SFT], by_label[DPO]).changes[-1]
            preferred = asdict(change) | {"p": change.mcnemar.p}
        pairs = len(self.pairs.read_text(encoding="utf-8").splitlines())
        return Demo(table, preferred, pairs, self.report, seconds)


def train_recipe(path: Path, overrides: list[str]) -> "Training | Preferred":
    """Train what a recipe says: DPO when it has a beta, else SFT.

    Raises UserError for a missing file, and what load_recipe, load_dpo_recipe and the two `train` functions raise.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:  # said here, before the libraries are imported, which takes ten seconds
        raise UserError(f"recipe {path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError:
        values = None  # load_recipe says what is wrong with it
    if isinstance(values, dict) and "beta" in values:
        from step4_finetune.dpo import train as train_on_pairs
        from step4_finetune.dpo_recipe import load_dpo_recipe

        return train_on_pairs(load_dpo_recipe(path, overrides))
    from step4_finetune.recipe import load_recipe
    from step4_finetune.train import train

    return train(load_recipe(path, overrides))
