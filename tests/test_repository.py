"""The promises that concern the repository as a whole: who imports whom, and what the documentation points at.

python -m pytest tests/test_repository.py
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from scripts.size import LONGEST_FILE, LONGEST_FUNCTION, Part, measure
from shared.provenance import tracked_files

ROOT = Path(__file__).resolve().parents[1]
STEPS = sorted(path.name for path in ROOT.glob("step[0-9]_*"))


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_files_and_functions_can_be_read_in_one_sitting() -> None:
    parts = measure(tracked_files(ROOT, "*.py"), ROOT)
    assert len(parts) > 7
    assert [part.longest_file for part in parts if part.longest_file[0] > LONGEST_FILE] == []
    assert [part.longest_function for part in parts if part.longest_function[0] > LONGEST_FUNCTION] == []


def test_a_function_is_as_long_as_its_own_lines(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    module = tmp_path / "part" / "module.py"
    module.write_text("def outer():\n    def inner():\n        a = 1\n        return a\n\n    return inner\n")
    assert measure([module], tmp_path) == [Part("part", 1, 6, (6, "part/module.py"), (3, "outer in part/module.py"))]


# -- imports -----------------------------------------------------------------------------------------------------------


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_step_imports_another_step_and_shared_imports_none() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in tracked_files(ROOT, "*.py")
        if (package := path.relative_to(ROOT).parts[0]) in {*STEPS, "shared"}
        for name in imported(ast.parse(path.read_text(encoding="utf-8")))
        if (root := name.split(".")[0]) in STEPS and root != package
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["shared", *STEPS])
def test_modules_import_each_other_in_one_direction(package: str) -> None:
    """What runs at import time: imports inside functions and under TYPE_CHECKING may go back."""
    modules = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in tracked_files(ROOT, f"{package}/*.py")
    }
    names = set(modules.values())
    graph = {}
    for path, name in modules.items():
        body = ast.Module(ast.parse(path.read_text(encoding="utf-8")).body, [])
        body.body = [node for node in body.body if isinstance(node, ast.Import | ast.ImportFrom)]
        graph[name] = {found for found in imported(body) if found in names and found != name}
    assert len(graph) > 3
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


# -- documentation -----------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a Markdown page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = [title.strip().lower() for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_every_link_in_the_documentation_resolves() -> None:
    broken, count = [], 0
    for page in tracked_files(ROOT, "*.md"):
        if "prompts" in page.parts or "adapters" in page.parts:
            continue
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for address in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in address:
                continue
            count += 1
            path, _, anchor = address.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {address}")
    assert count > 20
    assert broken == []


@pytest.mark.parametrize("card", tracked_files(ROOT, "shared/adapters/*/README.md"), ids=lambda card: card.parent.name)
def test_a_published_card_says_how_to_use_it_as_a_new_one_would(card: Path) -> None:
    from step4_finetune.card import how_to_use

    use = how_to_use(card.parent.name, "smollm2-135m")
    assert f"\n\n{use}\n\n## Figures\n" in card.read_text("utf-8")
