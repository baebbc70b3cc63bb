"""A kind of columns of one's own: an angle, by its laws, and by the name that programs take."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from inference import Table, trust
from inference.columns.angle import Angle
from inference.folders.loading import load_trained
from inference.settings import names
from models import DataError
from pyro_mdm.tables.columns import (
    KINDS,
    column_facts,
    column_of_facts,
    decode,
    encode,
    fit_columns,
    register_kind,
    to_model_space,
)
from tests.brief import be_brief

ROOT = Path(__file__).parents[2]
FILE = ROOT / "inference" / "columns" / "angle.py"


def winds(number: int = 400, middle: float = 0.0) -> np.ndarray:
    """Directions about ``middle``, in degrees, most within a radian."""
    radians = np.random.default_rng(0).vonmises(math.radians(middle), 2.0, number)
    return np.degrees(radians) % 360


def fitted(values: np.ndarray) -> Angle:
    return Angle("wind", values, values)


@pytest.mark.parametrize("middle", [0.0, 100.0, 350.0])
def test_density_of_an_angle_integrates_to_one(middle: float) -> None:
    """x is N(0, 1) in the mean, so that the density is φ(x) |dx/dw|."""
    column = fitted(winds(middle=middle))
    step = 360 / 2**18
    angles = step * (torch.arange(2**18, dtype=torch.float64) + 0.5)
    x, log_slope = column.scaled(angles)
    log_density = -0.5 * x**2 - 0.5 * math.log(2 * math.pi) + log_slope
    assert float(log_density.exp().sum() * step) == pytest.approx(1, abs=1e-3)
    assert float(log_density.exp().min()) >= 0


def test_an_angle_is_cut_where_none_is_and_has_no_ends_elsewhere() -> None:
    assert fitted(np.array([10.0, 20.0, 200.0] * 20)).in_words.endswith("cut at 110°")
    column = fitted(winds())
    assert 120 < column._cut < 240
    near = torch.tensor([359.9, 0.1], dtype=torch.float64)
    x, log_slope = column.scaled(near)
    assert float(x[1] - x[0]) == pytest.approx(0.2 * math.exp(float(log_slope[0])), rel=1e-6)


@pytest.mark.parametrize("middle", [0.0, 100.0])
def test_draws_have_the_law_of_the_angles(middle: float) -> None:
    values = winds(2_000, middle)
    column = fitted(values)
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = column.unscaled(x).numpy()
    assert (drawn >= 0).all() and (drawn < 360).all()
    law = stats.vonmises(2.0, loc=math.radians(middle))
    turned = (np.radians(drawn - middle) + math.pi) % (2 * math.pi) - math.pi + law.mean()
    assert stats.kstest(turned, law.cdf).statistic < 0.04  # of 2,000 values: 1.36 / √2000 = 0.03


def test_angles_go_to_model_space_and_back() -> None:
    values = np.append(winds(), [0.0, 359.999])
    column = fitted(values)
    x, _ = column.scaled(torch.from_numpy(values))
    np.testing.assert_allclose(column.unscaled(x).numpy() % 360, values, atol=1e-7)
    turns = pd.Series([-90.0, 270.0, 630.0, None])
    assert column.codes(turns)[:3].tolist() == [270.0] * 3 and np.isnan(column.codes(turns)[3])
    with pytest.raises(DataError, match="expected a number"):
        column.codes(pd.Series(["north"]))
    middle = column.center(np.array([[350.0], [10.0]]), "mean")
    assert min(float(middle[0]), 360 - float(middle[0])) == pytest.approx(0, abs=1e-9)


def frame(rows: int = 120) -> pd.DataFrame:
    wind = winds(rows)
    speed = np.random.default_rng(1).exponential(size=rows) + np.cos(np.radians(wind)) + 1
    table = pd.DataFrame({"wind": wind, "speed": speed})
    table.loc[::10, "wind"] = None
    return table


def test_a_kind_is_registered_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = dict(KINDS)
    try:
        register_kind(Angle)
        table = frame()
        columns = fit_columns(table, np.ones(len(table), dtype=bool), {"wind": "angle"})
        assert type(columns[0]) is Angle and columns[0].kind == columns[0].spec == "angle"
        x = to_model_space(columns, encode(columns, table)).x
        pd.testing.assert_frame_equal(decode(columns, x), table, rtol=1e-4)
        again = column_of_facts(json.loads(json.dumps(column_facts(columns[0]))))
        assert column_facts(again) == column_facts(columns[0])
    finally:
        KINDS.clear()
        KINDS.update(kinds)
    with pytest.raises(DataError, match="expected a kind of"):
        fit_columns(frame(), np.ones(120, dtype=bool), {"wind": "angle"})


def test_names_of_kinds_are_seen_and_canonical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(FILE, tmp_path / "angle.py")
    monkeypatch.chdir(tmp_path)
    whole = f"{tmp_path}/angle.py:Angle"
    columns = 'speed=0..,wind=angle.py:Angle mar,"size=a<b",x=pack.mod:Kind,y=date'
    assert names.kinds_named(columns) == ["angle.py:Angle", "pack.mod:Kind"]
    assert names.canonical_columns(columns) == columns.replace("angle.py:Angle", whole).replace(
        '"', ""
    )
    assert names.canonical_columns("a=integer,b=drop") == "a=integer,b=drop"
    assert names.canonical_columns(None) is None
    assert names.source_files({"columns": f"wind={whole}"}) == [tmp_path / "angle.py"]
    with pytest.raises(TypeError, match="expected a subclass of pyro_mdm"):
        names.find_column_kind(f"{tmp_path}/angle.py:np")


def test_a_run_has_a_kind_of_a_file_and_asks_for_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by its name again, and not where the file has changed."""
    monkeypatch.setenv(trust.FOLDER, str(tmp_path / "trusted"))
    monkeypatch.chdir(tmp_path)
    be_brief(monkeypatch)
    file = tmp_path / "mine.py"
    shutil.copy(FILE, file)
    options = {"steps": 2, "test_size": 8, "draws": 1, "seed": 0}
    table = Table(columns="wind=mine.py:Angle", folder=tmp_path / "run", **options).fit(frame())
    column = table.column("wind")
    assert type(column).__name__ == "Angle" and column.spec == f"{file}:Angle"
    assert "angle: a density on the circle" in table.columns_in_words
    assert (tmp_path / "run" / "sources" / "mine.py").read_bytes() == file.read_bytes()
    drawn = table.sample(20)["wind"]
    assert drawn.between(0, 360, inclusive="left").all()
    assert np.isfinite(table.log_prob(frame().head(3), draws=1)["log_prob"]).all()

    again = Table.from_run(tmp_path / "run")  # remembered
    assert column_facts(again.column("wind")) == column_facts(column)
    file.write_text(file.read_text("utf-8") + "\n# changed\n", "utf-8")
    with pytest.raises(trust.UntrustedCodeError, match="as columns"):
        load_trained(tmp_path / "run")
    with trust.trusting():
        load_trained(tmp_path / "run")


def test_a_run_opens_after_the_file_of_a_kind_has_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a diffusion of one's own: its new folder is set in config.yaml, with a warning."""
    monkeypatch.setenv(trust.FOLDER, str(tmp_path / "trusted"))
    be_brief(monkeypatch)
    file, config = tmp_path / "mine.py", tmp_path / "run" / "config.yaml"
    shutil.copy(FILE, file)
    options = {"steps": 2, "test_size": 8, "draws": 1, "seed": 0}
    table = Table(columns=f"wind={file}:Angle", folder=tmp_path / "run", **options).fit(frame())
    (tmp_path / "elsewhere").mkdir()
    file.rename(tmp_path / "elsewhere" / "mine.py")
    config.write_text(config.read_text("utf-8").replace(str(file), f"{tmp_path}/elsewhere/mine.py"))
    moved = pytest.warns(UserWarning, match="differs from the checkpoint: columns")
    with trust.trusting(), moved:
        again = Table.from_run(tmp_path / "run")
    before, after = (vars(t.column("wind")) for t in (table, again))
    assert before.keys() == after.keys()
    assert again.sample(5)["wind"].between(0, 360, inclusive="left").all()


MISTAKEN = """
import numpy as np
from pyro_mdm.tables import Ordinal
from pyro_mdm.tables.columns.numbers import Continuous

class Grade(Ordinal):
    kind = "grade"

class WithArray(Continuous):
    kind = "with array"

    def __init__(self, name, values, **others):
        super().__init__(name, values, **others)
        self.seen = np.zeros(3)
"""


def test_mistakes_about_kinds_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.FOLDER, str(tmp_path / "trusted"))
    file = tmp_path / "mine.py"
    file.write_text(MISTAKEN, "utf-8")
    train = np.ones(120, dtype=bool)
    with pytest.raises(DataError, match="which find_kind is to find, and that is not given"):
        fit_columns(frame(), train, {"wind": "mine.py:Angle"})
    with pytest.raises(TypeError, match="dict is no kind of columns"):
        register_kind(dict)  # type: ignore[type-var]
    grades = frame().assign(wind=np.arange(120) % 5)
    kinds = {"wind": f"{file}:Grade"}
    columns = fit_columns(grades, train, kinds, names.find_column_kind)
    assert columns[0].spec == f"{file}:Grade 0..4"
    with pytest.raises(DataError, match="a run cannot keep column 'wind'"):
        Table(columns=f"wind={file}:WithArray", folder=tmp_path / "run", steps=2).fit(frame())


def test_whoever_does_not_trust_a_kind_is_told_how_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trust.FOLDER, str(tmp_path / "trusted"))
    file = tmp_path / "mine.py"
    shutil.copy(FILE, file)
    with (
        trust.named_by(tmp_path),
        pytest.raises(trust.UntrustedCodeError, match=r"--columns NAME=\S+mine\.py:Angle"),
    ):
        names.find_column_kind(f"{file}:Angle")


class Plane(Angle):
    """Numbers of two dimensions in model space."""

    kind = "plane"
    width = 2

    def scaled(
        self, codes: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, slope = super().scaled(codes, noise)
        return torch.stack([x, x], -1), slope

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        return super().unscaled(x[..., 0])


class Whole(Angle):
    """A kind that takes the name of a built-in class, and recognizes nothing itself."""

    kind = "integer"


def test_kinds_of_ones_own_beside_those_of_the_library() -> None:
    train, kinds = np.ones(120, dtype=bool), dict(KINDS)
    days = pd.date_range("2024-01-01", periods=120).to_series(index=range(120))
    dates = fit_columns(pd.DataFrame({"day": days}), train)[0]
    facts = json.loads(json.dumps(column_facts(dates)))
    empty = frame().assign(job=np.where(np.arange(120) % 3 == 0, "none", "some"))
    empty.loc[empty["job"] == "none", "wind"] = None
    try:
        register_kind(Plane)
        register_kind(Whole)
        assert column_facts(column_of_facts(facts)) == facts  # its line is of the library's class
        assert fit_columns(frame(), train)[0].kind != "plane"  # it has to be said
        (plane, _) = fit_columns(frame().assign(wind=winds(120)), train, {"wind": "plane"})
        assert plane.denoiser_levels == [None, None]
        gone = fit_columns(empty, train, {"wind": "plane absent"})[0]
        assert gone.denoiser_levels == [2, None, None]
        codes = encode([gone], empty)
        x, _ = to_model_space([gone], codes)
        again = encode([gone], decode([gone], x).assign(job=empty["job"]))
        torch.testing.assert_close(again[codes.isfinite()], codes[codes.isfinite()])
        assert torch.equal(again.isinf(), codes.isinf())
    finally:
        KINDS.clear()
        KINDS.update(kinds)
