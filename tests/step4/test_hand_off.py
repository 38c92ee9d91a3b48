"""One adapter in several engines: what agrees, where answers part, and that a wrong engine is noticed.

python -m pytest tests/step4/test_hand_off.py
"""

import json
import shutil
from pathlib import Path

import pytest
from harness_world import write_lora

from shared.engine import load_engine
from shared.errors import UserError
from shared.openai_server import serve
from step4_finetune import hand_off
from step4_finetune.evaluation.task import Item
from step4_finetune.hand_off import Difference, Said, compare, measure

TOOL = {"type": "function", "function": {"name": "count_boats", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_off, "MOST_TOKENS", 8)


def said(text: str, gap: float = 1.0) -> Said:
    return Said(text.split(), [gap] * len(text.split()))


def test_an_answer_counts_up_to_the_first_difference() -> None:
    reference = {"a": said("one two three"), "b": said("four five six seven", 0.25), "c": said("eight nine")}
    other = {"a": said("one two three"), "b": said("four five 6 seven"), "c": said("eight")}
    found = compare("other", reference, other)
    assert (found.answers, found.identical, found.tokens, found.agreeing) == (3, 1, 9, 6)
    assert found.differences == [
        Difference("b", "fourfive", "sixseven", "6seven", 0.25),
        Difference("c", "eight", "nine", "", 1.0),
    ]
    ended = compare("other", {"c": Said(["eight"], [1.0, 7.5])}, {"c": said("eight nine")})
    assert ended.agreeing == 1
    assert ended.differences == [Difference("c", "eight", "", "nine", 7.5)]  # it was sure of its end
    cut_off = compare("other", {"c": said("eight")}, {"c": said("eight nine")})
    assert cut_off.differences == [Difference("c", "eight", "", "nine", None)]


def test_merged_it_says_the_same_and_with_a_wrong_sign_it_does_not(tiny_llama: Path, tmp_path: Path) -> None:
    """The tiny model's answers are noise, so a rounding may change one; a wrong sign changes all answers."""
    adapter = write_lora(tmp_path / "tools", str(tiny_llama))
    wrong = tmp_path / "wrong" / "tools"
    shutil.copytree(adapter, wrong)
    configuration = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(configuration | {"lora_alpha": -8}))
    texts = ["How many boats?", "Count the boats in Oslo.", "Who are you?", "And in Rome?", "Boats, please.", "No."]
    items = [Item(text, "boats", [{"role": "user", "content": text}], None, [TOOL]) for text in texts]
    with serve(load_engine(str(tiny_llama), [wrong], dtype="float32", quiet=True)) as url:
        merged, other = measure(adapter, items, ["merged", f"wrong sign={url}"], "unused")
    assert [merged.system, other.system] == ["merged, float32", "wrong sign"]
    assert merged.tokens == other.tokens == 48
    assert merged.identical >= 4
    assert all(difference.gap is None or difference.gap < 0.05 for difference in merged.differences)
    assert len(other.differences) == len(items)


def test_an_endpoint_that_is_not_there_or_lacks_the_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    item = Item("a", "boats", [{"role": "user", "content": "Boats?"}], None, [TOOL])
    adapter = write_lora(tmp_path / "tools", str(tiny_llama))
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1: Connection error"):
        measure(adapter, [item], ["http://127.0.0.1:9/v1"], "unused")
    with pytest.raises(UserError, match="--against merge: give merged, int4, or"):
        measure(adapter, [item], ["merge"], "unused")
    with (
        serve(load_engine(str(tiny_llama), dtype="float32", quiet=True)) as url,
        pytest.raises(UserError, match="does not serve 'tools'; it lists"),
    ):
        measure(adapter, [item], [url], "unused")
