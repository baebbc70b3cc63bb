"""Text of CSV files: kinds of cells × kinds of columns × every reader and program.

An empty cell is missing and no other text is; a number loses nothing that its text has; and what
was not imputed is written as it was read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from inference.drawing.files import given_values
from inference.drawing.pieces import csv_text, read_pieces
from inference.evaluate import evaluate
from inference.impute import impute
from inference.posteriors.observations import content_of
from inference.sample import sample
from inference.train import train
from models import DataError, Tabular
from models.csv_files import MISSING, text_columns
from models.tabular import read_table
from pyro_mdm.tables.columns.kinds import kind_of
from tests.brief import SHORT

WORDS = sorted(MISSING)
TEXTS = {
    **{"leading zeros": ["00501", "00210"], "one leading zero": ["501", "0210", "7"]},
    **{"signed zeros": ["-01", "2"], "zeros before a point": ["00.5", "1.5"]},
    **{"words": ["None", "Brick"], "all words for nothing": WORDS, "one word": ["NA", "NA"]},
    "long numbers": ["12345678901234567890", "1"],
    "beyond what float64 has": [str(2**53 + 1), "2"],
    "a number of 400 digits": ["1" * 400, "2"],
    "an exponent of 400": ["1e400", "2"],
    **{"dates and words": ["2024-01-05", "late"], "times": ["12:30", "07:05"]},
    **{"versions": ["1.10.1", "1.9.0"], "units": ["5 cm", "7 cm"], "grouped": ["1,000", "2,000"]},
    **{"underscores": ["1_000", "2_000"], "hexadecimal": ["0x1F", "0x2A"], "dots": [".", "-"]},
    **{"spaces": [" a", "a "], "quotes": ['a "b"', "c"], "lines": ["a\nb", "c"]},
    **{"truth and words": ["true", "maybe"], "truth and numbers": ["True", "1"]},
    **{"letters": ["é", "ß"], "formulas": ["=1+1", "@x"], "numbers and words": ["1", "two"]},
}
"""Cells that are text as they are."""
NUMBERS = {
    **{"whole": ["1", "20"], "decimals": ["1.10", "2.35"], "signed": ["+5", "-3"]},
    **{"exponents": ["1e3", "2.5E-4"], "no whole part": [".5", "-.25"], "no decimals": ["5.", "6"]},
    **{"spaced": [" 5", "6 "], "zero": ["0", "-0.0"], "short zeros": ["0.50", "0e0"]},
    "the largest whole": [str(2**53), "-" + str(2**53)],
    **{"many decimals": ["0.1234567890123456789", "1"], "large": ["1e300", "-1e300"]},
}
"""Cells that are numbers."""


def write(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    path.write_text(csv_text([[*row] for row in rows]), newline="")
    return path


def by_table(path: Path, as_text: Sequence[str]) -> pd.DataFrame:
    return read_table(path, as_text)


def by_pieces(path: Path, as_text: Sequence[str]) -> pd.DataFrame:
    pieces = list(read_pieces(str(path), 2, as_text))
    table = pd.concat([piece.table for piece in pieces])
    types = [piece.table.dtypes.to_dict() for piece in pieces]
    assert all(one == types[0] for one in types) and [*table.index] == [*range(len(table))]
    return table


READERS: dict[str, Callable[[Path, Sequence[str]], pd.DataFrame]] = {
    "table": by_table,
    "pieces": by_pieces,
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Callable[[Path, Sequence[str]], pd.DataFrame]:
    return READERS[request.param]


@pytest.mark.parametrize("cells", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("said", [False, True])
def test_text_is_kept(cells: list[str], said: bool, reader: Any, tmp_path: Path) -> None:
    rows = [["x", "n"], *([cell, "1"] for cell in cells), ["", "1"]]
    table = reader(write(tmp_path / "a.csv", rows), ["x"] if said else [])
    assert table["x"].tolist()[:-1] == cells and table["x"].isna().tolist()[-1]
    assert kind_of(table["x"]) == "categorical" and table["n"].tolist() == [1] * len(table)


@pytest.mark.parametrize("cells", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("empty", [False, True])
def test_numbers_are_numbers(cells: list[str], empty: bool, reader: Any, tmp_path: Path) -> None:
    rows = [["x", "n"], *([cell, "1"] for cell in cells), *([["", "1"]] if empty else [])]
    path = write(tmp_path / "a.csv", rows)
    values = reader(path, [])["x"]
    assert values.tolist()[: len(cells)] == [float(cell) for cell in cells]
    whole = all(cell.strip().lstrip("+-").isdigit() for cell in cells)
    assert values.dtype == (np.int64 if whole and not empty else np.float64)
    assert reader(path, ["x"])["x"].tolist()[: len(cells)] == cells  # of a column of categories


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2.5"], "numbers"),
        (["true", "FALSE"], "true or false"),
        (["2024-01-05", "2024-02-01"], "dates"),
    ],
)
def test_a_word_for_nothing_among_others_is_missing_with_a_warning(
    word: str, cells: list[str], kind: str, reader: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.csv", [["x", "y"], *([cell, "b"] for cell in [*cells, word, word])])
    message = rf"a\.csv: column 'x' has 2 cells '{word}', and all others are {kind}; .* x=categ"
    with pytest.warns(UserWarning, match=message):
        values = reader(path, [])["x"]
    assert values.isna().tolist() == [False, False, True, True]
    assert kind_of(values) in {"numbers": ["ordinal"], "dates": ["date"]}.get(kind, ["boolean"])
    assert reader(path, ["x"])["x"].tolist() == [*cells, word, word]


WRONG = {
    "a longer row": ("a,b\n1,2\n1,2,3\n", "row 1 has 3 cells, expected at most 2"),
    "a comma at the end": ("a,b\n1,2,\n", "row 0 has 3 cells, expected at most 2"),
    "an index without a name": ("a,b\nr,1,2\ns,3,4\n", "row 0 has 3 cells, expected at most"),
    "one name twice": ("a,a\n1,2\n", "has two columns 'a', expected names that differ"),
    "another mark": ("a;b\n1;2\n", "has one column, 'a;b', expected commas"),
    "a quote that has no end": ('a,b\n1,"2\n3,4\n', "unexpected end of data"),
    "text after a quote": ('a,b\n"1"x,2\n', "expected after"),
    "a cell of a megabyte": ("a,b\n1," + "x" * 2**20 + "\n", "field larger than field limit"),
    "nothing": ("", "is empty, expected a table"),
    "blank lines": ("\n\n", "is empty, expected a table"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_a_file_of_another_form_is_refused(
    content: str, message: str, reader: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        reader(tmp_path / "a.csv", [])


def test_short_rows_and_blank_lines_and_marks_of_bytes(reader: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffa,b,\r\n1,2,3\r\n\r\n4\r\n".encode())
    table = reader(tmp_path / "a.csv", [])
    assert [*table.columns] == ["a", "b", "Unnamed: 2"] and table["a"].tolist() == [1, 4]
    assert table["b"].isna().tolist() == [False, True]
    (tmp_path / "b.csv").write_text("a,b\n")
    assert len(read_table(tmp_path / "b.csv")) == 0


def test_observations_are_read_by_the_same_reader(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x, y\n1,NA\n2\n")
    assert content_of(tmp_path / "a.csv") == {"x": ["1", "2"], "y": ["NA", ""]}


# -- programs --------------------------------------------------------------------------------------

N = 100
LEVELS = {
    "zip": ["00501", "10001", "02134"],
    "wall": ["None", "Brick", "NA"],
    "version": ["1.10", "1.9", "1.1"],
    "code": ["7", "8", "9"],
}
COLUMNS = "version=categorical,code=categorical,price=continuous"


def made(path: Path, seed: int = 0) -> list[list[str]]:
    """A table with gaps, whose columns but the price hold text."""
    rng = np.random.default_rng(seed)
    rows = [[*LEVELS, "price", "note"]]
    for _ in range(N):
        cells = [str(rng.choice(levels)) for levels in LEVELS.values()]
        cells += [f"{rng.normal():.2f}0", f' say "{rng.integers(9)}", or not ']
        rows.append(["" if rng.random() < 0.2 and j < 5 else cell for j, cell in enumerate(cells)])
    write(path, rows)
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.brief import be_brief

    folder = tmp_path_factory.mktemp("runs")
    made(folder / "in.csv")
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch)
        words: Any = SHORT | {"model": "tabular", "data": str(folder / "in.csv")}
        train(**words, columns=COLUMNS + ",note=drop", run=folder / "run", figures=False)
    return folder / "run"


def read_back(path: Path) -> list[list[str]]:
    return [*csv.reader(io.StringIO(path.read_text(), newline=""))]


def test_levels_are_the_texts_of_the_file(run: Path) -> None:
    problem = Tabular(data=run.parent / "in.csv", columns=COLUMNS + ",note=drop")
    found = {column.name: set(column.values(np.arange(3))) for column in problem.columns[:4]}
    assert found == {name: set(levels) for name, levels in LEVELS.items()}
    assert set(text_columns(problem.columns)) == set(LEVELS)


def test_imputation_writes_levels_and_leaves_all_other_cells(run: Path, tmp_path: Path) -> None:
    before = made(tmp_path / "new.csv", seed=1)
    impute(run, str(tmp_path / "new.csv"), tmp_path / "full.csv", num=2, steps=2)
    after = read_back(tmp_path / "full.csv")
    assert after[0] == before[0] and len(after) == len(before)
    drawn = 0
    for old, new in zip(before[1:], after[1:], strict=True):
        for name, cell, cell_after in zip(before[0], old, new, strict=True):
            if cell:
                assert cell_after == cell
                continue
            drawn += 1
            if name in LEVELS:
                assert cell_after in LEVELS[name], (name, cell_after)
            else:
                float(cell_after)
    assert drawn > 30


def test_samples_and_bounds_have_the_texts_of_the_file(run: Path, tmp_path: Path) -> None:
    sample(run, num_samples=6, steps=2, out=tmp_path / "rows.csv")
    names, *rows = read_back(tmp_path / "rows.csv")
    assert all(row[names.index(name)] in LEVELS[name] for row in rows for name in LEVELS)
    made(tmp_path / "new.csv", seed=1)
    evaluate(run, data=str(tmp_path / "new.csv"), draws=1, out=tmp_path / "bounds.csv")
    bounds = pd.read_csv(tmp_path / "bounds.csv")
    assert len(bounds) == N and np.isfinite(bounds.iloc[:, 0]).all()


def test_a_given_cell_is_read_as_one_of_the_file(run: Path) -> None:
    problem = Tabular(data=run.parent / "in.csv", columns=COLUMNS + ",note=drop")
    out = Path("rows.csv")
    assert given_values("zip=00501,wall=None,version=1.10,price=2", problem, out) == {
        **{"zip": "00501", "wall": "None", "version": "1.10", "price": 2}
    }
