"""LoRA adapters: what peft computes, loaded beside each other over one set of base weights."""

import json
from pathlib import Path

import pytest
import torch
from tiny_adapter import TARGETS, make_adapter

from shared.engine import Engine
from shared.errors import UserError
from shared.generation import Request
from shared.models import load
from shared.sampling import Sampling

IDS = torch.tensor([5, 17, 3, 99, 42, 7, 8, 20])


@pytest.mark.parametrize("targets", ["all", "some"])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_qwen3"])
def test_logits_equal_peft(
    fixture: str, targets: str, rslora: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = request.getfixturevalue(fixture)
    make_adapter(base, tmp_path / "lora", TARGETS[targets], 1, rslora=rslora)
    ours = load(str(base), adapter=tmp_path / "lora", dtype="float32", quiet=True)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "lora"
    )
    with torch.inference_mode():
        expected = theirs(IDS[None]).logits[0]
        plain = theirs.base_model.disable_adapter_layers() or theirs(IDS[None]).logits[0]
    transformer = ours.transformer
    hidden = transformer.forward(IDS, [transformer.new_cache()], [len(IDS)], ours.adapters["lora"])
    assert torch.allclose(transformer.logits(hidden), expected, atol=5e-4)
    assert not torch.allclose(expected, plain, atol=0.1)


def test_two_adapters_share_one_base_and_one_batch(tiny_llama: Path, tmp_path: Path) -> None:
    """Requests for the base and two adapters decode side by side, each as if it were alone."""
    import queue

    model = load(str(tiny_llama), dtype="float32", quiet=True)
    for seed, name in ((1, "first"), (2, "second")):
        make_adapter(tiny_llama, tmp_path / name, TARGETS["all"], seed)
        model.add_adapter(tmp_path / name)
    names = [None, "first", "second"]
    requests = [Request(IDS.tolist(), Sampling(temperature=0), 20, adapter=name, ignore_eos=True) for name in names]
    alone = [[e.token for e in Engine(model).generate(request)] for request in requests]
    assert len({tuple(tokens) for tokens in alone}) == 3
    engine, queues = Engine(model), [queue.SimpleQueue() for _ in requests]
    for request, events in zip(requests * 2, queues * 2, strict=True):
        engine.submit(request, events.put)
    while engine.step():
        pass
    for events, tokens in zip(queues, alone, strict=True):
        got = [events.get().token for _ in range(events.qsize())]
        assert sorted(got) == sorted(tokens * 2)


def test_prefix_cache_never_crosses_adapters(tiny_llama: Path, tmp_path: Path) -> None:
    model = load(str(tiny_llama), dtype="float32", quiet=True)
    make_adapter(tiny_llama, tmp_path / "lora", TARGETS["all"], 1)
    model.add_adapter(tmp_path / "lora")
    request = Request(IDS.tolist(), Sampling(temperature=0), 5, adapter="lora", ignore_eos=True)
    fresh = [e.token for e in Engine(model).generate(request)]
    engine = Engine(model)
    list(engine.generate(Request(IDS.tolist(), Sampling(temperature=0), 5, ignore_eos=True)))
    assert [e.token for e in engine.generate(request)] == fresh


@pytest.mark.parametrize(
    ("change", "message"),
    [({"use_dora": True}, "use_dora is not supported"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")],
)
def test_unsupported_variants_are_refused(tiny_llama: Path, tmp_path: Path, change: dict, message: str) -> None:
    make_adapter(tiny_llama, tmp_path, TARGETS["some"], 1)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        load(str(tiny_llama), adapter=tmp_path, quiet=True)


def test_an_adapter_of_another_model_is_refused(tiny_llama: Path, tiny_qwen3: Path, tmp_path: Path) -> None:
    make_adapter(tiny_qwen3, tmp_path, TARGETS["all"], 1)
    with pytest.raises(UserError, match="made for another model"):
        load(str(tiny_llama), adapter=tmp_path, quiet=True)
    (tmp_path / "a" / "same").mkdir(parents=True)
    make_adapter(tiny_llama, tmp_path / "b" / "same", TARGETS["some"], 1)
    model = load(str(tiny_llama), adapter=tmp_path / "b" / "same", quiet=True)
    with pytest.raises(UserError, match="the name 'same' is taken"):
        model.add_adapter(tmp_path / "a" / "same")
    with pytest.raises(UserError, match="adapter_config.json is missing"):
        load(str(tiny_llama), adapter=tmp_path / "nowhere", quiet=True)
