"""step3_rag/README.md: what it draws and names is what there is.

python -m pytest tests/step3/test_step3_readme.py
"""

import re
from pathlib import Path

from step3_rag.answers import EDGES
from step3_rag.demo import QUESTIONS
from step3_rag.graders import GRADERS

STEP = Path(__file__).parents[2] / "step3_rag"
README = (STEP / "README.md").read_text(encoding="utf-8")


def test_the_graph_is_drawn_as_it_is() -> None:
    drawn = re.findall(r"^  (\w+) -->\|([^|]+)\| (\w+)$", README, re.MULTILINE)
    assert tuple(drawn) == EDGES


def test_every_link_leads_to_a_file() -> None:
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert "://" in link or (STEP / link).exists(), link


def test_every_grader_and_verb_is_named() -> None:
    for grader in GRADERS:
        assert f"| `{grader}` |" in README
    for verb in ("ingest", "search", "route", "ask", "chat", "calibrate", "eval", "sources"):
        assert f"step3_rag {verb} " in README
    assert QUESTIONS["declined"][0] in README
