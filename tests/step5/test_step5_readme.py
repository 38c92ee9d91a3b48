"""Step 5's README points at lines of code: each link's line must define what the link says.

python -m pytest tests/step5/test_step5_readme.py
"""

import re
from pathlib import Path

STEP = Path(__file__).parents[2] / "step5_serving"


def test_links_lead_to_what_they_say() -> None:
    text = (STEP / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\[`(\w+)`\]\((\S+?)#L(\d+)\)", text)
    assert len(links) >= 10
    for name, file, number in links:
        line = (STEP / file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        assert re.search(rf"\bdef {name}\b", line), f"{name}: {file} line {number} is {line.strip()!r}"
    for target in re.findall(r"\]\(([^)#]+?)(?:#L\d+)?\)", text):
        assert target.startswith("https://") or (STEP / target).exists(), target
    assert "]()" not in text
