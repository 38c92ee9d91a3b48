"""Every table in this repository's Markdown equals the JSON (or the settings) it is made from.

python -m pytest tests/test_readme_tables.py     # repair with: python -m shared.results render
"""

import re
from pathlib import Path

from shared.results import read_results
from shared.results_pages import outdated

REPOSITORY = Path(__file__).resolve().parents[1]


def test_tables_equal_their_results() -> None:
    stale = [str(page.relative_to(REPOSITORY)) for page in outdated(REPOSITORY)]
    assert stale == [], "run: python -m shared.results render"


def test_every_results_file_is_well_formed() -> None:
    for path in REPOSITORY.glob("*/results/*.json"):
        read_results(path)


def test_a_step_shows_its_own_results_only() -> None:
    """Exported it stands alone, and the other steps' results are not there."""
    for page in REPOSITORY.glob("step[1-5]_*/**/*.md"):
        step = page.relative_to(REPOSITORY).parts[0]
        shown = re.findall(r"^<!-- results: (\w+)/", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(shown) <= {step}, page
