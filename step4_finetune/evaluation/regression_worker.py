"""One model through lm-eval, in a process of its own: started by regressions.py, which says what and why.

    python -m step4_finetune.evaluation.regression_worker FOLDER OUTPUT.json MODEL_DIR [ADAPTER_DIR]

FOLDER holds the tasks' data. A process of its own, because lm-eval and datasets read "offline" from the environment
when they are imported, and because its end gives all memory back before the next model comes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent / "lm_eval_tasks"


def measure(folder: Path, model: Path, adapter: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Return {task: samples}. A sample of choices: place of the chosen one, whether it is right; of prose:
    log-likelihood and words.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from shared.models import choose_device
    from shared.provenance import cpu_has_fast_bfloat16

    device = str(choose_device("auto").value)
    fast = device == "cuda" or (device == "cpu" and cpu_has_fast_bfloat16())
    lm = HFLM(
        pretrained=str(model),
        peft=str(adapter) if adapter else None,
        dtype="bfloat16" if fast else "float32",
        device=device,
        batch_size=16,
    )
    os.chdir(folder)  # the YAML files name their data without a folder
    # Only our tasks: indexing lm-eval's own fourteen thousand files takes longer than a small run.
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    tasks = manager.load(sorted(path.stem for path in TASKS.glob("*.yaml")))
    # Not simple_evaluate: it also asks git, pip and the compiler about the machine, which takes 4 s.
    results = evaluate(lm, tasks, bootstrap_iters=0)
    assert results is not None  # None on the other ranks of a distributed run
    return {name: [sample_of(sample) for sample in samples] for name, samples in results["samples"].items()}


def sample_of(sample: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one of lm-eval's samples."""
    if "word_perplexity" in sample:
        loglikelihood, words = sample["word_perplexity"]
        return {"id": sample["doc_id"], "loglikelihood": loglikelihood, "words": words}
    # As acc_norm does it: log-likelihood per character, so that long choices are not at a disadvantage.
    lengths = [len(choice) for choice in sample["doc"]["choices"]]
    scores = [response[0] / length for response, length in zip(sample["filtered_resps"], lengths, strict=True)]
    return {"id": sample["doc_id"], "chosen": scores.index(max(scores)), "correct": bool(sample["acc_norm"])}


def main() -> None:
    """Measure, and write the samples as JSON."""
    from shared.files import atomic_write

    folder, output, model, *adapter = map(Path, sys.argv[1:])
    output = output.absolute()
    found = measure(folder, model.absolute(), adapter[0].absolute() if adapter else None)
    atomic_write(output, json.dumps(found))


if __name__ == "__main__":
    main()
