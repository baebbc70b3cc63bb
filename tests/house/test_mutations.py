"""Mutations: all can be tried on the code as it is now, and the command says which survive."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import mutations
from tests.mutations import MUTATIONS, Mutation, fault, main

CODE = "def area(a, b):\n    return a * b\n\n\ndef sum_of(a, b):\n    return a + b\n"
TESTS = """\
from code_of_two import area, sum_of


def test_area():
    assert area(2, 3) == 6


def test_sum():
    assert sum_of(2, 2) == 4
"""
CAUGHT = Mutation("code_of_two.py", "a * b", "a / b", "test_code.py::test_area")
SURVIVING = Mutation("code_of_two.py", "a + b", "a * b", "test_code.py::test_sum")
"""Of 2 and 2 the product is the sum."""
CRASH = "__import__('os')._exit(9)"
CRASHING = Mutation("code_of_two.py", "a * b", CRASH, "test_code.py::test_area")
MOVED = Mutation("code_of_two.py", "a - b", "b - a", "test_code.py::test_sum")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository of one file and its tests."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "code_of_two.py").write_text(CODE)
    (tmp_path / "tests" / "test_code.py").write_text(TESTS)
    return tmp_path


def test_all_can_be_tried() -> None:
    faults = {f"{m.file}: {m.old}": fault(m) for m in MUTATIONS}
    assert not {text: why for text, why in faults.items() if why is not None}
    assert len(set(MUTATIONS)) == len(MUTATIONS) > 100
    assert not [m for m in MUTATIONS if m.old == m.new]


@pytest.mark.slow
def test_what_survives_is_said_and_results_are_kept(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutations, "LOADED", [])

    def run(*words: str) -> tuple[int, str]:
        return main([*words], [CAUGHT, SURVIVING, CRASHING, MOVED], tree), capsys.readouterr().out

    status, said = run("--processes", "2")
    assert status == 1 and "4 mutations, 3 to be tried" in said and "1 of 4 are caught" in said
    lines = said.partition("are caught")[2].strip().splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines[::2]] == ["2", "3", "4"]
    assert lines[0].endswith("code_of_two.py: a + b → a * b")
    assert lines[1].strip() == "survived; test_code.py::test_sum"
    assert "not known: pytest ended with 9" in lines[3] and "0 times" in lines[5]
    assert (tree / "code_of_two.py").read_text() == CODE

    with open(tree / ".mutations" / "results.jsonl", "a") as file:
        file.write('\n{"key": "12')  # of a process that was killed
    status, said = run("--only", "1", "2")
    assert status == 1 and "2 mutations, 0 to be tried" in said and "1 of 2 are caught" in said

    (tree / "tests" / "test_code.py").write_text(TESTS.replace("== 4", "== 5"))
    status, said = run("--files", "two", "--only", "2")
    assert status == 2 and "1 mutations, 1 to be tried" in said  # as its test has changed
    assert said.endswith("does not pass without a mutation; mend that first\n")
    with pytest.raises(SystemExit):
        run("--only", "5")
    assert "there are 4 mutations" in capsys.readouterr().err
