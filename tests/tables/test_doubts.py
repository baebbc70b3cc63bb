"""Tables as people keep them: each damage is a warning with a remedy, impossible rows get a word,
and samples keep the ends, the steps and the types of the table."""

from __future__ import annotations

import datetime
import decimal
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_mdm.tables import Table, fit_columns
from pyro_mdm.tables.rows import TableRows

N = 200


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- doubts: kinds of damage × types of columns ----------------------------------------------------

CLEAN: dict[str, Callable[[], Any]] = {
    "ages": lambda: rng().integers(18, 91, N),
    "amounts": lambda: 10.0 * rng().integers(10, 900, N),
    "rating": lambda: rng().integers(1, 6, N),
    "normal": lambda: rng().normal(size=N),
    "counts": lambda: rng().poisson(30, N),
    "prices": lambda: rng().exponential(size=N).round(2),
    "nullable": lambda: pd.array(rng().integers(0, 70, N), "Int64"),
    "objects": lambda: pd.Series([*map(int, rng().integers(0, 70, N))], dtype=object),
    "decimals": lambda: [decimal.Decimal(f"{x:.2f}") for x in rng().normal(size=N)],
    "flags": lambda: rng().random(N) < 0.5,
    "cities": lambda: rng().choice(["Rome", "Oslo", "Bern"], N),
    "categories": lambda: pd.Categorical(rng().choice(["Rome", "Oslo"], N)),
    "grades": lambda: pd.Categorical(rng().choice([*"abc"], N), [*"abc"], ordered=True),
    "days": lambda: pd.Timestamp("2020-01-01") + pd.to_timedelta(rng().integers(0, 99, N), "D"),
    "postal": lambda: rng().choice(["00501", "01234", "09999"], N),
    "iso": lambda: [f"2020-01-{1 + k % 28:02}" for k in range(N)],
    "dates": lambda: [datetime.date(2020, 1, 1 + k % 28) for k in range(N)],
}

NUMBERS = ("ages", "normal", "prices", "nullable")
WORDS = ("cities", "categories", "grades", "iso")


def marked(mark: float) -> Callable[[pd.Series[Any]], pd.Series[Any]]:
    return lambda values: values.where(np.arange(N) % 10 > 0, mark)


def in_words(mark: str) -> Callable[[pd.Series[Any]], pd.Series[Any]]:
    def damage(values: pd.Series[Any]) -> pd.Series[Any]:
        text = values.astype(str).where(np.arange(N) % 10 > 0, mark)
        if not isinstance(values.dtype, pd.CategoricalDtype):
            return text
        return text.astype(pd.CategoricalDtype([*values.cat.categories, mark], values.cat.ordered))

    return damage


def as_text(form: str) -> Callable[[pd.Series[Any]], pd.Series[Any]]:
    return lambda values: values.map(lambda value: form.format(value))


def european(values: pd.Series[Any]) -> pd.Series[Any]:
    return values.map(lambda value: f"{value:.1f}".replace(".", ","))


Damage = Callable[["pd.Series[Any]"], "pd.Series[Any]"]
DAMAGES: dict[str, tuple[Damage, tuple[str, ...], str]] = {
    "-99": (marked(-99), tuple(n for n in NUMBERS if n != "normal"), "-99, there 20 times"),
    "-9": (marked(-9), ("rating", "prices"), "-9, there 20 times"),
    "99999": (marked(99999), NUMBERS, "99999, there 20 times"),
    "9 of a scale": (marked(9), ("rating",), "9, there 20 times"),
    "88 of a scale": (marked(88), ("rating",), "88, there 20 times"),
    "?": (in_words("?"), WORDS[:3], r"'\?' is a category; leave it empty"),
    "blank": (in_words(" "), WORDS[:3], "'' is a category; leave it empty"),
    "n/a": (in_words("N/A"), WORDS[:1], "'N/A' is a category; leave it empty"),
    "-99 in words": (in_words("-99"), WORDS[:1], "'-99' is a category; leave it empty"),
    "? among dates": (in_words("?"), ("iso",), r"to_datetime\(…, format='%Y-%m-%d', errors="),
    "? among numbers": (in_words("?"), NUMBERS, r"90% of its values .* leave '\?' empty"),
    "text": (as_text("{}"), NUMBERS, "100% of its values are numbers in text; store them as num"),
    "blanks": (as_text(" {} "), NUMBERS, "numbers in text; store them as numbers, as pandas.to_"),
    "decimal commas": (european, NUMBERS, r'as a plain number, as pandas.*decimal=","'),
    "thousands": (
        lambda values: (values.astype(float) * 1e5).map("{:,.0f}".format),
        ("amounts", "counts"),
        r'as pandas.read_csv\(…, thousands=","',
    ),
    "dollars": (as_text("${}"), ("amounts",), r"write '\$.* as a plain number"),
    "blanks at the end": (
        lambda values: values.where(np.arange(N) % 3 > 0, values + " "),
        ("cities",),
        r"differ by blanks at their ends alone; .str.strip\(\) joins them",
    ),
    "dd/mm/yyyy": (lambda v: v.dt.strftime("%d/%m/%Y"), ("days",), r"to_.*format='%d/%m/%Y', "),
    "HH:MM": (lambda v: v.dt.strftime("%d:%M"), ("days",), r"to_datetime.*format='%H:%M'"),
    "one value": (lambda v: v.where(v.index < 0, v[0]), (*WORDS, "ages"), "its only value in the"),
    "nothing": (lambda v: v.where(v.index < 0), (*WORDS, "ages", "days"), "it has no value"),
    "a key": (lambda v: v.astype(str) + [f"-{k}" for k in range(N)], WORDS, "in one row alone"),
    "counted": (lambda v: pd.Series(range(N)), NUMBERS[:2], "it counts the rows, 0 to 199"),
    "many levels": (
        lambda v: v.astype(str) + [f" {k // 2}" for k in range(N)],
        ("cities",),
        "are no category of the training rows, or are not one of the 100 most frequent|in one row",
    ),
}
CASES = [(damage, column) for damage, (_, columns, _) in DAMAGES.items() for column in columns]


def warned(column: pd.Series[Any], **options: Any) -> str:
    """What a table with a column warns of, as fit does."""
    table = pd.DataFrame({"x": rng(1).normal(size=N), "w": column})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TableRows(table, **options).warn_of_doubts()
    assert len(caught) <= 1  # all of them in one
    return "\n".join(str(one.message) for one in caught)


@pytest.mark.parametrize(("damage", "column"), CASES)
def test_a_damage_is_a_warning_that_a_given_kind_silences(damage: str, column: str) -> None:
    spoil, _, message = DAMAGES[damage]
    values = spoil(pd.Series(CLEAN[column]()))
    words = warned(values)
    assert pd.Series([words]).str.contains(f"'w'.*(?:{message})").all(), words
    kind = "drop" if damage in ("one value", "nothing") else "categorical"
    assert warned(values, columns=f"w={kind}") == ""


@pytest.mark.parametrize("column", CLEAN)
def test_a_clean_column_gives_no_warning(column: str) -> None:
    assert warned(pd.Series(CLEAN[column]())) == ""


REMEDIES: dict[str, tuple[str, str, Callable[[pd.Series[Any]], Any], str]] = {
    "blanks": ("blanks", "ages", pd.to_numeric, "integer"),
    "text": ("text", "prices", pd.to_numeric, "rounded"),
    "days": (
        *("dd/mm/yyyy", "days"),
        lambda text: pd.to_datetime(text, format="%d/%m/%Y", errors="coerce"),
        "date",
    ),
    "times": (
        *("HH:MM", "days"),
        lambda text: pd.to_datetime(text, format="%H:%M", errors="coerce"),
        "date",
    ),
    "marks": ("-99", "ages", lambda numbers: numbers.replace(-99, None), "integer"),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_of_a_doubt_ends_it(name: str) -> None:
    damage, column, remedy, kind = REMEDIES[name]
    values = remedy(DAMAGES[damage][0](pd.Series(CLEAN[column]())))
    assert warned(values) == ""
    table = pd.DataFrame({"w": values})
    assert fit_columns(table, np.ones(N, dtype=bool))[0].kind == kind


def test_fit_warns_whether_or_not_it_shows_progress() -> None:
    frame = pd.DataFrame({"x": rng().normal(size=N), "city": ["Rome", "?"] * (N // 2)})
    for progress in (False, True):
        with pytest.warns(UserWarning, match=r"columns=\"NAME=KIND\" .*\n  'city': '\?' is a"):
            Table(steps=1, progress=progress).fit(frame)
    Table(steps=1, columns={"city": "categorical"}).fit(frame)


# -- impossible rows -------------------------------------------------------------------------------


def working() -> pd.DataFrame:
    """A table of which some columns do not exist for those who do not work."""
    random = rng()
    works = random.choice(["yes", "no"], 400)
    since = pd.Timestamp("2010-01-01") + pd.to_timedelta(random.integers(0, 3000, 400), "D")
    return pd.DataFrame(
        {
            "age": random.integers(18, 91, 400),
            "works": works,
            "hours": np.where(works == "yes", random.normal(40, 5, 400).round(1), math.nan),
            "level": np.where(works == "yes", random.choice([*"abc"], 400), None),
            "since": pd.Series(since).where(works == "yes"),
        }
    )


def fitted(frame: pd.DataFrame) -> Table:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samples, after few steps
        return Table(steps=1).fit(frame)


@pytest.fixture(scope="module")
def people() -> Table:
    return fitted(working())


IMPOSSIBLE = {
    "hours": (40.0, "column 'hours' has a value in . rows? where 'works' is 'no', where the tr"),
    "level": ("a", "column 'level' has a value in . rows? where 'works' is 'no'"),
    "since": (pd.Timestamp("2015-01-01"), "column 'since' has a value in . rows? where 'works'"),
    "age": (200, "column 'age' holds 200 in . rows?, expected values like .* 18 to 9"),
}


@pytest.mark.parametrize(
    ("name", "call"),
    [(name, "log_prob") for name in IMPOSSIBLE]
    + [("hours", call) for call in ("sample", "impute", "conditional")],
)
def test_an_impossible_question_gets_a_word(people: Table, name: str, call: str) -> None:
    value, message = IMPOSSIBLE[name]
    given = {"works": "no", name: value}
    rows = pd.DataFrame({n: [given.get(n)] * 3 for n in people.names})
    with pytest.warns(UserWarning, match=message):
        match call:
            case "sample":
                people.sample(3, given=given)
            case "impute":
                people.impute(rows, num=1)
            case "conditional":
                people.conditional(rows, "age", num=2).sample()
            case _:
                people.log_prob(rows, draws=8)


@pytest.mark.parametrize("given", [{"works": "yes", "hours": 40.0}, {"age": 92}, {"hours": 60.0}])
def test_a_possible_question_gets_none(people: Table, given: dict[str, Any]) -> None:
    assert len(people.sample(3, given=given)) == 3
    assert (people.sample(3, given=given)[[*given]] == pd.Series(given)).all(axis=None)


def test_the_mean_of_a_partly_absent_column_says_of_what_share() -> None:
    name = "since"
    table = fitted(working()[["age", "works", name]])
    rows = pd.DataFrame({"works": ["yes", "no", None, None], "age": [30, 30, 30, None]})
    law = table.conditional(rows, name, num=60)
    share = law.exists()
    assert share[0] > 0.9 > 0.1 > share[1] and share[2:].between(0.2, 0.8).all()
    assert share.equals(law.sample().notna().mean(axis=1).rename(name))
    with pytest.warns(
        UserWarning, match=r"may not exist: in . of 4 rows it does with prob.*exists"
    ):
        means, middle, ends = law.mean(), law.quantile(0.5), law.interval(0.5)
    some = share > 0
    assert means[some].notna().all() and middle[some].notna().all()
    assert (ends[some]["low"] <= middle[some]).all() and (middle[some] <= ends[some]["high"]).all()
    assert means[~some].isna().all() and ends[~some].isna().all(axis=None)


# -- ends ------------------------------------------------------------------------------------------

SHARP: dict[str, tuple[Callable[[np.random.Generator, int], Any], tuple[bool, bool]]] = {
    "uniform": (lambda r, n: 5 + r.random(n), (True, True)),
    "ages": (lambda r, n: r.integers(18, 91, n).astype(float), (True, True)),
    "cents": (lambda r, n: (20 + 9 * r.random(n)).round(2), (True, True)),
    "tens": (lambda r, n: 10.0 * r.integers(20, 90, n), (True, True)),
    "shifted": (lambda r, n: 5 + r.exponential(size=n), (True, False)),
    "waits": (lambda r, n: r.exponential(size=n), (False, False)),  # 0 is the end
    "mirrored": (lambda r, n: -r.exponential(size=n) - 5, (False, True)),
    "normal": (lambda r, n: r.normal(size=n), (False, False)),
    "heavy": (lambda r, n: r.standard_t(3, n), (False, False)),
    "lognormal": (lambda r, n: np.exp(r.normal(size=n)), (False, False)),
    "gamma": (lambda r, n: r.gamma(2, size=n), (False, False)),
    "counts": (lambda r, n: r.poisson(40, n).astype(float), (False, False)),
}


@pytest.mark.parametrize("name", SHARP)
@pytest.mark.parametrize("n", [200, 2000])
def test_sharp_ends_are_inferred_and_kept(name: str, n: int) -> None:
    draw, expected = SHARP[name]
    right = 0
    for seed in range(6):
        values = draw(rng(seed), n)
        (column,) = fit_columns(pd.DataFrame({"w": values}), np.ones(n, dtype=bool))
        edges = column.edges  # type: ignore[attr-defined]
        sharp = tuple(bool(math.isfinite(end)) for end in edges)
        right += sharp == expected
        x = torch.linspace(-6, 6, 2001, dtype=torch.float64)
        drawn = np.asarray(column.values(column.unscaled(x).numpy()))
        assert (np.diff(drawn) >= 0).all()
        assert not sharp[0] or (drawn.min() == values.min() == edges[0])
        assert not sharp[1] or (drawn.max() == values.max() == edges[1])
        assert ("none drawn below" in column.in_words, "none drawn above" in column.in_words) == (
            sharp
        )
        normal = torch.special.ndtr(x)
        for end, at_end in zip(
            edges, (normal[drawn == drawn[0]], 1 - normal[drawn == drawn[-1]]), strict=True
        ):
            if math.isfinite(end) and not column.noisy:  # no heap at the end
                assert float(at_end.max()) <= 4 / n
        new = pd.Series([values.max() + 10.0, values.min()]).round(9)
        assert not column.unknown(new).any()
    assert right >= 5


@pytest.mark.parametrize("form", ["days", "text", "times"])
def test_no_date_is_drawn_after_a_register_ends(form: str) -> None:
    days = pd.Timestamp("2021-01-01") + pd.to_timedelta(rng().integers(0, 500, 1000), "D")
    values = pd.Series(days)
    if form == "text":
        values = values.dt.strftime("%Y-%m-%d")
    elif form == "times":
        values = values + pd.to_timedelta(rng(1).integers(0, 1440, 1000), "min")
    (column,) = fit_columns(pd.DataFrame({"w": values}), np.ones(1000, dtype=bool))
    drawn = column.values(column.unscaled(torch.linspace(-6, 6, 999, dtype=torch.float64)).numpy())
    assert pd.Series(drawn).max() == values.max() and pd.Series(drawn).min() == values.min()
    assert f"none drawn after {values.max()}" in column.in_words
    assert not column.unknown(pd.Series([pd.Timestamp("2023-01-01")])).any()


# -- heaping ---------------------------------------------------------------------------------------


# -- types -----------------------------------------------------------------------------------------

TYPES: dict[str, Callable[[], Any]] = {
    "int64": lambda: rng().integers(0, 90, N),
    "int32": lambda: rng().integers(0, 90, N).astype("int32"),
    "uint8 levels": lambda: rng().integers(0, 5, N).astype("uint8"),
    "Int64": lambda: pd.array(rng().integers(0, 90, N), "Int64"),
    "Int16 levels": lambda: pd.array(rng().integers(0, 4, N), "Int16"),
    "float64": lambda: rng().normal(size=N),
    "float64 whole": lambda: rng().integers(0, 90, N).astype(float),
    "float64 levels": lambda: rng().integers(0, 4, N).astype(float),
    "float32": lambda: rng().normal(size=N).astype("float32"),
    "Float64": lambda: pd.array(rng().normal(size=N), "Float64"),
    "bool": lambda: rng().random(N) < 0.5,
    "boolean": lambda: pd.array(rng().random(N) < 0.5, "boolean"),
    "str": lambda: pd.Series(rng().choice([*"abc"], N)),
    "string": lambda: pd.array(rng().choice([*"abc"], N), "string"),
    "category": lambda: pd.Categorical(rng().choice([*"abc"], N), [*"abcd"]),
    "ordered": lambda: pd.Categorical(rng().choice([*"cab"], N), [*"cabd"], ordered=True),
    "ordered numbers": lambda: pd.Categorical(rng().choice([3, 1, 2], N), ordered=True),
    "category of numbers": lambda: pd.Categorical(rng().choice([3, 1, 2], N)),
    "datetime64[s]": lambda: pd.Series(CLEAN["days"]()).astype("datetime64[s]"),
    "datetime64[ns, UTC]": lambda: pd.Series(CLEAN["days"]()).dt.tz_localize("UTC"),
}


def test_the_types_of_a_table_are_those_of_its_samples(tmp_path: Any) -> None:
    """With gaps where a type has room for them, but for float64, whose gaps may be of integers."""
    frame = pd.DataFrame({name: values() for name, values in TYPES.items()})
    types = frame.dtypes
    full = [name for name, t in types.items() if isinstance(t, np.dtype) and t.kind in "iub"]
    full += [name for name in frame if name.startswith("float64")]
    holes = rng(2).random(frame.shape) < 0.05
    frame = frame.mask(pd.DataFrame(holes, columns=frame.columns) & ~frame.columns.isin(full))
    frame = frame.astype(types)
    table = fitted(frame)
    table.save_pretrained(tmp_path / "table")
    for one in (table, Table.from_pretrained(tmp_path / "table")):
        samples = one.sample(20), one.sample(20, given={"ordered": "a", "int32": 7})
        for rows in samples:
            assert rows.dtypes.equals(types)
    filled = table.impute(frame.head(40), num=2)
    assert filled.dtypes.equals(types) and not filled.isna().any(axis=None)
    assert table.transform(frame.head(40)).dtypes.equals(types)
