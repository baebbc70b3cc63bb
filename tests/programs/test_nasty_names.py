"""Names that are hard to write: every writer of names × what a name of somebody else may be.

Of columns, levels, files and folders, on command lines, in CSV files, figures and on terminals.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from inference.commands.cli import command_line
from inference.commands.terminal import Terminal
from inference.drawing.pieces import csv_text, read_pieces, table_text
from inference.inspect import figure as inspection_figure
from inference.measuring.compare_figure import comparison_figure
from inference.sample import comma_separated
from inference.settings.names import kinds_text
from models.tabular import Tabular
from pyro_mdm import CLD
from pyro_mdm.plots.posteriors import posterior_figure, predictive_figure
from pyro_mdm.plots.tables import calibration_figure, marginals_figure, pairs_figure
from pyro_mdm.support.text import CONTROLS, shown
from tests.brief import SHORT, be_brief
from tests.programs.running import run_program

NASTY = {
    "line break": "a\nb",
    "return": "a\rb",
    "mathematics": "$x$",
    "broken mathematics": "$_^{$",
    "backslash": r"a\frac$\frac$",
    "quotes": "a\"b'c",
    "comma": "a,b",
    "equals": "a=b",
    "escape": "\x1b[2Jred",
    "right to left": "\u202eabc",
    "very long": "n" * 200,
    "comment": "#c",
    "null": "null",
    "home": "~",
    "option": "-x",
    "list": "[a",
    "mapping": "{a: 1}",
    "spaces": " a ",
    "format": "%s {x}",
    "symbols": "\u03b5\u00b1",
}
UNDECODABLE = "\udcff\udce9"
"""A file's name that is not UTF-8, as Python has it."""


def program(
    out: Path | None = None, data: list[Path] | Path | None = None, name: str | None = None
):
    """Do it."""
    CALLS.append({"out": out, "data": data, "name": name})


CALLS: list[dict[str, Any]] = []


@pytest.mark.quick
@pytest.mark.parametrize("option", ["out", "data", "name"])
@pytest.mark.parametrize("name", [*NASTY.values(), UNDECODABLE], ids=[*NASTY, "not UTF-8"])
def test_a_word_of_a_command_line_is_that_path_or_name(name: str, option: str) -> None:
    """--run '#c' and --run=null were no path, so that another run was started."""
    if (option, name) in [("name", "null"), ("name", "~"), ("data", "[a")]:
        pytest.skip("YAML's for nothing, which no name is; and where several may be, a list")
    for words in ([f"--{option}={name}"], [f"--{option}", name]):
        CALLS.clear()
        command_line(program, words)
        assert CALLS[0][option] == (name if option == "name" else Path(name))


@pytest.mark.quick
def test_an_empty_word_is_no_path(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command_line(program, ["--out", ""])
    assert "--out is empty, expected a path" in capsys.readouterr().err


@pytest.mark.quick
@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_csv_holds_every_name(name: str, tmp_path: Path) -> None:
    (word,) = comma_separated(kinds_text({name: "continuous"}), "columns")
    assert word == f"{name}=continuous"
    level = f"{name}."  # pandas reads null as a missing entry
    rows = [[name, "y"], [level, "1"], ["b", "2"]]
    table = pd.DataFrame({name: [level, "b"], "y": [1, 2]})
    for text in (csv_text(rows), table_text(table)):
        assert list(csv.reader(io.StringIO(text, newline=""))) == rows
        (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), table)
        (piece,) = read_pieces(str(tmp_path / "t.csv"), 8)
        pd.testing.assert_frame_equal(piece.table, table)


def test_kinds_of_columns_with_a_line_break_need_quotes() -> None:
    with pytest.raises(ValueError, match=r"columns is 'a.nb=drop', which has a line break"):
        Tabular(data="wine", columns="a\nb=drop")


def _calibration(name: str) -> Figure:
    ranks, given = np.arange(8) % 4, np.full((8, 2), 0.5)
    return calibration_figure({name: ranks / 4}, {f"{name}2": (given, ranks % 2)})


def _pairs(name: str) -> Figure:
    levels = np.array([name, "b"] * 10)
    return pairs_figure({name: np.linspace(0, 1.5, 20), "level": levels, "y": np.arange(20) / 7})


def _marginals(name: str) -> Figure:
    return marginals_figure({name: np.linspace(0, 1.5, 20), "level": np.array([name, "b"] * 10)})


def _comparison(name: str) -> Figure:
    columns = ("bits_per_dim", "low_95_bits_per_dim", "high_95_bits_per_dim")
    error = {"monte_carlo_half_width_95_bits_per_dim": 0.1, "simulated": False}
    bounds = [{"run": run, **dict.fromkeys(columns, 1.0), **error} for run in (name, "b")]
    ends = {"low_95_bits_per_dim": 0.0, "high_95_bits_per_dim": 1.0, "resolved": True}
    differences = [{"first": name, "second": "b", "difference_bits_per_dim": 0.5, **error, **ends}]
    values = ("diffusion_bits_per_dim_per_log_snr", "monte_carlo_error_bits_per_dim_per_log_snr")
    values += ("difference_bits_per_dim", "cumulative_bits_per_dim", "cumulative_error")
    rows = [
        {"run": run, "log_snr_low": k, "log_snr_high": k + 1, **dict.fromkeys(values, 1.0)}
        for run in (name, "b", "c")
        for k in range(2)
    ]
    bounds.append({**bounds[1], "run": "c", "simulated": True})
    return comparison_figure(bounds, differences, rows, title=name)


def _posterior(name: str) -> Figure:
    return posterior_figure({name: torch.arange(20.0), "b": torch.arange(20.0).square()})


def _predictive(name: str) -> Figure:
    return predictive_figure({name: torch.arange(20.0).reshape(10, 2)}, {name: torch.ones(2)})


def _inspection(name: str) -> Figure:
    return inspection_figure([name], [CLD(max_log_snr=3.0)], torch.randn(9, 2))


FIGURES: dict[str, Callable[[str], Figure]] = {
    "calibration": _calibration,
    "marginals": _marginals,
    "pairs": _pairs,
    "comparison": _comparison,
    "posterior": _posterior,
    "predictive": _predictive,
    "inspection": _inspection,
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figures_show_names_as_they_are(draw: Callable[[str], Figure]) -> None:
    """Mathematics that is none ended a run that was finished: ParseSyntaxException."""
    figure = draw("$_^{$\n\x1b[2J\r\u202e$x$")
    figure.set_layout_engine("none")
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert not any(CONTROLS.search(text) for text in texts)
    assert any(r"\$_^{" in text for text in texts)


@pytest.mark.quick
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", None])
@pytest.mark.parametrize("name", [*NASTY.values(), UNDECODABLE], ids=[*NASTY, "not UTF-8"])
def test_a_terminal_shows_every_name(name: str, encoding: str | None) -> None:
    text = shown(f"error: {name} is 1.5 ± 0.2, expected ε < λ…", encoding)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    text.encode(encoding or "utf-8")
    if encoding == "ascii":
        assert " is 1.5 +/- 0.2, expected eps < lambda..." in text
    assert "\x1b" not in name or r"\x1b[2J" in text


def test_bars_of_progress_move_and_nothing_else_does() -> None:
    raw = io.BytesIO()
    stream = Terminal(io.TextIOWrapper(raw, "cp1252", newline=""))
    for text in ("\r 50%|#\x1b[A", "\x1b[A", "\n\n", "λ\x1b[A\r"):
        stream.write(text)
    stream.flush()
    assert raw.getvalue() == b"\r 50%|#\\x1b[A" + b"\x1b[A" + b"\n\n" + b"lambda\\x1b[A\\r"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_program_writes_to_any_terminal(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """± of the last line and ε of an error were UnicodeEncodeError."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.chdir(tmp_path)

    def says(name: str = "ε") -> None:
        """Say it ± exactly."""
        print(f"bits/dim 1.23 ± 0.01, {name}")
        raise ValueError("\x1b[2Jgone")

    with pytest.raises(SystemExit, match=r"error: .x1b\[2Jgone"):
        command_line(says, ["--name", "λ\x1b[31m"])
    with pytest.raises(SystemExit, match="0"):
        command_line(says, ["--help"])
    out.flush()
    said = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "0.01, lambda\\x1b[31m" in said and "exactly" in said


@pytest.mark.slow
def test_a_run_whose_columns_have_such_names_ends_with_all_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is evaluated, drawn from and completed, in a folder and of a file of such names."""
    be_brief(monkeypatch)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [*list(NASTY.values())[:9], "#c", "null"]
    table = pd.DataFrame({name: rng.normal(size=120).round(3) for name in names[4:]})
    table["$level"] = rng.choice([*names[:4], "v"], 120)
    table = table.mask(rng.random(table.shape) < 0.05)
    Path("a\n$_^{$.csv").write_text(table_text(table), encoding="utf-8", newline="")
    names, data = list(table.columns), "a\n$_^{$.csv"
    options = SHORT | {"model": "tabular", "guide": "vpsde", "steps": 2, "batch_size": 8}
    del options["test_size"]
    words = [f"--{name}={value}" for name, value in options.items()]
    run_program("train", *words, "--run=#r", f"--data={data}")
    assert Path("#r/results.json").is_file() and Path("#r/samples.png").is_file()
    run_program("evaluate", "#r", "--data", data, "--out", "#b.csv", "--draws", 1)
    few = ("--steps", 2, "--accelerator", "cpu")
    run_program("sample", "#r", "--out", "null.csv", "--num_samples", 5, *few)
    run_program("impute", "#r", "--data", data, "--out", "-x.csv", "--num", 1, *few)
    for file, rows in (("null.csv", 5), ("-x.csv", 120)):
        found = pd.read_csv(file)
        assert list(found.columns) == names and len(found) == rows
    assert "\x1b" not in capsys.readouterr().out
