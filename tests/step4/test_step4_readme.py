"""The README of step 4 says of the data what the data are.

python -m pytest tests/step4/test_step4_readme.py
"""

from step4_finetune.function_specs import FOLDER, later_functions


def test_the_readme_counts_the_third_hours_functions() -> None:
    later = later_functions()
    counts = f"{len(later):,} more, of {len({function.domain for function in later})} domains"
    assert counts in (FOLDER.parent / "README.md").read_text(encoding="utf-8")
