"""step3_rag/resources.py: which grader is taken where nobody names one.

python -m pytest tests/step3/test_resources.py
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.config import settings
from step3_rag import resources
from step3_rag.graders import DEFAULT_GRADER, WITHOUT_ADAPTER


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A shared/adapters of its own; the adapter is the default grader."""
    monkeypatch.setattr("shared.endpoint.PUBLISHED", tmp_path)
    monkeypatch.setattr(resources, "DEFAULT_GRADER", "adapter")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("MODEL", "small")
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def test_the_adapter_is_the_default_only_for_the_model_that_it_was_trained_on(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resources.default_grader() == WITHOUT_ADAPTER
    (published / "grader").mkdir()
    (published / "grader" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "small"}))
    assert resources.default_grader() == "adapter"
    assert resources.default_grader("large") == WITHOUT_ADAPTER
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    settings.cache_clear()
    assert resources.default_grader() == WITHOUT_ADAPTER


def test_a_default_that_needs_no_adapter_is_always_there() -> None:
    assert WITHOUT_ADAPTER != "adapter"
    if DEFAULT_GRADER != "adapter":
        assert resources.default_grader("whatever") == DEFAULT_GRADER
