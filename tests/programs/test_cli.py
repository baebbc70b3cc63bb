"""Words of a command line are what the signature of a program says."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from inference.commands.cli import command_line
from inference.settings.options import GROUPS, DataOptions, Machine, Optimization, Options
from inference.train import train

pytestmark = pytest.mark.quick

Found = dict[str, Any]


def program(
    runs: Sequence[Path] = (),
    steps: int | None = None,
    rate: float = 0.5,
    kind: Literal["plain", "fancy"] | None = None,
    probes: Literal["exact"] | int | None = None,
    noise: float | list[float] | list[list[float]] | None = None,
    out: Path | None = None,
    name: str | None = None,
    holdout: bool = True,
    overwrite: bool = False,
) -> None:
    """Do it.

    With 5% of the effort.

    Args:
        runs: folders.
        steps: numbers
            of a kind.
        kind: a choice.
    """
    CALLS.append(dict(locals()))


CALLS: list[Found] = []


def call(*words: str, unnamed: str | None = "runs", function: Callable[..., None] = program) -> Any:
    """What the program is called with, but for defaults."""
    CALLS.clear()
    command_line(function, words, unnamed=unnamed)
    (found,) = CALLS
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    return {name: value for name, value in found.items() if value != defaults[name]}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--steps 3", {"steps": 3}),
        ("--steps=1e3", {"steps": 1000}),
        ("--steps 1234567890123456789", {"steps": 1234567890123456789}),
        ("--rate -1e-3", {"rate": -1e-3}),
        ("--rate 2", {"rate": 2.0}),
        ("--steps null --kind fancy", {"kind": "fancy"}),
        ("--probes 4", {"probes": 4}),
        ("--probes exact", {"probes": "exact"}),
        ("--noise 0.25", {"noise": 0.25}),
        ("--noise [1,2e-1]", {"noise": [1.0, 0.2]}),
        ("--noise [[1,0.3],[0.3,1]]", {"noise": [[1.0, 0.3], [0.3, 1.0]]}),
        ("--out a/b.png", {"out": Path("a/b.png")}),
        ("--name 3", {"name": "3"}),
        ("--name a=b", {"name": "a=b"}),
        ("help", {"runs": [Path("help")]}),
        ("a b", {"runs": [Path("a"), Path("b")]}),
        ("a --steps 3 b", {"runs": [Path("a"), Path("b")], "steps": 3}),
        ("--overwrite", {"overwrite": True}),
        ("--overwrite a", {"overwrite": True, "runs": [Path("a")]}),
        ("--holdout False --overwrite true", {"holdout": False, "overwrite": True}),
        ("--steps 3 --steps 4", {"steps": 4}),
    ],
)
def test_words_are_read_as_the_signature_says(words: str, expected: Found) -> None:
    found = call(*words.split())
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in expected.items()
    }


def test_a_config_goes_before_defaults_and_behind_words(tmp_path: Path) -> None:
    file, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    file.write_text(
        "steps: 1000\nrate: 1e-4\nout: a\nruns: [x, y]\nholdout: false\nnoise: [1, 2]\n"
    )
    other.write_text("rate: 3\n")
    found = call("--rate", "2", "--config", str(file))
    assert found.pop("runs") == [Path("x"), Path("y")]
    whole = {"steps": 1000, "out": Path("a"), "holdout": False, "noise": [1.0, 2.0]}
    assert found == whole | {"rate": 2.0}
    assert call("--config", str(file), f"--config={other}")["rate"] == 3.0


def test_a_printed_config_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("a", "--steps", "1e3", "--out", "b", "--noise", "[1, 2]", "--rate", "1e-5")
    with pytest.raises(SystemExit) as caught:
        call(*words, "--print_config")
    printed = capsys.readouterr().out
    assert caught.value.code == 0 and list(yaml.safe_load(printed)) == list(
        inspect.signature(program).parameters
    )
    (tmp_path / "printed.yaml").write_text(printed)
    assert call("--config", str(tmp_path / "printed.yaml")) == call(*words)


def test_the_help_has_every_option_once_below_its_title(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for words in (["--help"], ["-h"], ["a", "--help", "--steps", "3"]):
        with pytest.raises(SystemExit) as caught:
            command_line(program, words, unnamed="runs")
        text = capsys.readouterr().out
        assert caught.value.code == 0
    assert "RUNS … [--option VALUE …]\n\nDo it.\n\nWith 5% of the effort.\n" in text
    assert re.search(r"--kind KIND +a choice\. \(type: .*'plain', 'fancy'", text)
    assert re.search(
        r"\n  --steps STEPS +numbers of a kind\. \(type: .*default: null\)\n"
        r"  --rate RATE +\(type: float, default: 0\.5\)\n",
        text,
    )
    grouped = [f.name for group in GROUPS.values() for f in dataclasses.fields(group)]
    assert sorted(grouped) == sorted(f.name for f in dataclasses.fields(Options))
    with pytest.raises(SystemExit):
        command_line(train, ["--help"], groups=GROUPS)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for name in grouped:
        assert len(re.findall(rf"\n  --{name}[ ,]", text)) == 1  # a comma from Python 3.13 on
    help_of = dict(re.findall(r"\n([^\n]+):\n(  --.*?)(?=\n\n)", text, re.DOTALL))
    for group in GROUPS.values():
        title = (inspect.getdoc(group) or "").splitlines()[0].rstrip(".")
        for field in dataclasses.fields(group):
            assert re.search(rf"  --{field.name}[ ,]", help_of[title])


SOME: dict[str, type] = {"data": DataOptions, "optimization": Optimization, "machine": Machine}


def grouped(*words: str) -> dict[str, Any]:
    """What a program of some groups of options is called with."""
    found: list[dict[str, Any]] = []

    def take(**options: Any) -> None:
        """Take them."""
        found.append(options)

    command_line(take, words, groups=SOME)
    return found[0]


def test_options_are_called_by_name_or_with_that_of_their_group(tmp_path: Path) -> None:
    (tmp_path / "flat.yaml").write_text("data: a\nsteps: 1000\nlearning_rate: 1e-4\nclip: 2\n")
    (tmp_path / "nested.yaml").write_text(
        "data: {data: a}\noptimization:\n  steps: 1000\n  learning_rate: 1e-4\nclip: 2\n"
    )
    changed = {f.name: f.default for group in SOME.values() for f in dataclasses.fields(group)}
    changed |= {"data": Path("a"), "steps": 1000, "learning_rate": 1e-4, "clip": 3.0, "seed": 10}
    for file in ("flat", "nested"):
        for words in ("--clip 3 --seed 1e1 --flip", "--optimization.clip=3 --seed 10 --data.flip"):
            words = f"{words} --config {tmp_path}/{file}.yaml"
            assert grouped(*words.split()) == changed | {"flip": True}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--machine.steps 3", "there is no option --machine.steps; steps is in optimization"),
        ("--optimisation.steps 3", "there is no option --optimisation.steps"),
        (
            "--optimization.stpes 3",
            "there is no option --optimization.stpes; did you mean --steps?",
        ),
        ("--optimization.steps many", "--steps is 'many', expected an integer"),
    ],
)
def test_a_name_in_the_wrong_group_is_no_option(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command_line(train, words.split(), groups=GROUPS)
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("machine: {steps: 3}", "no option is called machine.steps; steps is in optimization"),
        ("optimisation: {steps: 3}", "no option is called optimisation.steps; did you mean opti"),
        ("optimisation:", "no option is called optimisation; did you mean optimization?"),
        ("optimization: {stpes: 3}", "no option is called optimization.stpes; did you mean steps?"),
        ("optimization: 3", "no option is called optimization"),
        ("steps: 3\noptimization: {steps: 4}", "steps is given twice, alone and in its group"),
        ("data: {data: {a: b}}", "--data is"),
    ],
)
def test_a_name_in_the_wrong_group_of_a_file_is_no_option(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(SystemExit):
        command_line(train, ["--config", str(tmp_path / "wrong.yaml")], groups=GROUPS)
    assert f"wrong.yaml: {message}" in capsys.readouterr().err


def test_a_group_of_a_file_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optimization:\n  # steps: 3\ndata:\nmachine: {}\nseed: 3\n")
    found = grouped("--config", str(tmp_path / "a.yaml"))
    assert found["seed"] == 3 and found["data"] is None and found["steps"] is None


def test_a_mistake_of_the_program_itself_is_one_sentence_unless_debugged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong(steps: int = 1) -> None:
        """Fail."""
        raise ValueError("no")

    with pytest.raises(SystemExit, match=r"^error: no$"):
        command_line(wrong, [])
    with pytest.raises(ValueError, match=r"^no$"):
        command_line(wrong, ["--debug", "--steps", "3"])
    with pytest.raises(SystemExit) as caught:
        command_line(wrong, ["--steps", "x"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: --steps is 'x', expected an integer\n--help lists the options\n"
    )


PROGRAMS = [
    *("compare", "evaluate", "experiment", "impute", "inspect"),
    *("posterior", "restore", "sample", "train"),
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_python_calls_programs_as_it_calls_functions(name: str) -> None:
    """What a program has no place for is refused, as Python does, before anything is done."""
    called = getattr(importlib.import_module(f"inference.{name}"), name)
    with pytest.raises(TypeError, match="too many positional arguments"):
        called(*["few"] * 9)
    named = {
        "compare": {"runs": []}, "impute": {"run": "a", "data": "b", "out": "c"},
        "experiment": {"table": "ends"}, "restore": {"run": "a"},
    }.get(name, {})  # fmt: skip
    with pytest.raises(TypeError, match=f"stpes is no option of {name}, expected one"):
        called(**named, stpes=3)
    with pytest.raises(TypeError, match=f"options is no option of {name}, expected one"):
        called(**named, options={})
