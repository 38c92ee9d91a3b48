"""A file of tools: which of its functions are taken, and the one sentence a person reads when it is wrong.

python -m pytest tests/step2/test_tool_files.py
"""

from pathlib import Path

import pytest
from function_world import run

from shared.errors import UserError
from step2_tool_calling.function_tools import load_file

DATA = Path(__file__).parent / "data"


def test_a_file_of_tools() -> None:
    tools = {tool.name: tool for tool in load_file(DATA / "my_tools.py")}
    assert list(tools) == ["distance", "add_marker", "area"]
    assert [tool.unsafe for tool in tools.values()] == [False, True, False]
    assert {tool.source for tool in tools.values()} == {str(DATA / "my_tools.py")}
    assert run(tools["distance"], start={"x": 0}, end={"x": 3, "y": 4}) == 5.0
    assert run(tools["distance"], start={"x": 0}, end={"x": 3, "y": 4}, unit="km") == 0.005
    assert run(tools["add_marker"], at={"x": 1, "y": 2}, labels=["a"]) == "marker at 1,2 with 1 labels"
    start = tools["distance"].parameters["properties"]["start"]
    assert start["description"] == "Where to begin."  # of the parameter, not of its class
    assert start["required"] == ["x"]


def test_all_and_tools_choose(tmp_path: Path) -> None:
    body = "def b() -> int: return 1\ndef a() -> int: return 2\ndef _c() -> int: return 3\n"
    chosen = {
        "": ["b", "a"],
        "__all__ = ['_c', 'a']\n": ["a", "_c"],
        "TOOLS = [_c, b]\n": ["_c", "b"],
        "from step2_tool_calling.function_tools import from_function\nTOOLS = [from_function(a, name='z')]\n": ["z"],
    }
    for i, (extra, names) in enumerate(chosen.items()):
        path = tmp_path / f"file{i}.py"
        path.write_text(body + extra)
        tools = load_file(path)
        assert [tool.name for tool in tools] == names
        assert {tool.source for tool in tools} == {str(path)}  # "built-in" would have serve-mcp vouch for them


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", "line 1: SyntaxError: invalid syntax"),
        ("x = 1\n\nimport no_such_module\n", "line 3: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f() -> int:\n    return {}['k']\nf()\n", "line 2: KeyError: 'k'"),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
        ("from math import sqrt\n_x = 1\n", "defines no public function"),
        ("TOOLS = 3\n", "TOOLS must be a list"),
        ("TOOLS = [int]\n", "int does not tell its parameters"),
        ("__all__ = 3\ndef f() -> int: return 1\n", "__all__ must be a list of names"),
        ("def f(x): ...\n", "f: parameter x has no type"),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tools.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_file(path)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_file(tmp_path / "none.py")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="not a Python file"):
        load_file(tmp_path / "notes.txt")
