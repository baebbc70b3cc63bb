"""Measured numbers in the documentation: files, roles, tables, plots, and what pages may say."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as xml
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from docs._ext.measured import (
    Estimate,
    Measured,
    MeasuredError,
    heading,
    load,
    look_up,
    parse,
    series,
    svg,
    title,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = DOCS / "measured"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
FILES = {path.stem: path for path in sorted((FOLDER / "data").glob("*.csv"))}
WORDS = 2500
"""The most that a page may have."""

EXAMPLE = """\
# command: python -m inference.train
# machine: machine E
# date: 2026-11-27
# seeds: 0, 1
# unit: bits/dim
# note: In all `two` rows
score,diffusion,bits_per_dim,bits_per_dim_se,less_vpsde,less_vpsde_low,less_vpsde_high,steps,by
noise,vpsde,2.80512,0.0081,0,,,1200,
noise,cld,3.38912,0.2400,0.5841,0.4630,0.7043,900,machine A
denoiser,cld,-1.5,,-0.0120,-0.0500,0.0260,20,
"""


def written(folder: Path, text: str = EXAMPLE, name: str = "some-file") -> Measured:
    """A file of measured numbers in a documentation of its own."""
    data = folder / "measured" / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / f"{name}.csv").write_text(text, encoding="utf-8")
    return load(folder, name)


def test_a_file_is_read(tmp_path: Path) -> None:
    measured = written(tmp_path)
    assert measured.facts["note"] == ["In all `two` rows"]
    assert list(measured.names) == ["score", "diffusion"]
    assert list(measured.estimates) == ["bits_per_dim", "less_vpsde", "steps", "by"]
    assert len(measured.rows) == 3
    estimate = measured.estimate(measured.rows[1], "bits_per_dim")
    assert estimate.ends == pytest.approx((3.14912, 3.62912))
    assert measured.estimate(measured.rows[1], "less_vpsde").ends == (0.463, 0.7043)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("noise/vpsde/bits_per_dim", "2.8051 ± 0.0081"),
        ("noise/cld/bits_per_dim", "3.3891 ± 0.2400"),
        ("denoiser/cld/bits_per_dim", "-1.5"),
        ("noise/vpsde/less_vpsde", "0"),
        ("noise/cld/less_vpsde", "+0.584 (+0.463 to +0.704)"),
        ("denoiser/cld/less_vpsde", "-0.012 (-0.050 to +0.026)"),
        ("noise/vpsde/steps", "1,200"),
        ("noise/cld/by", "machine A"),
        ("noise/cld/bits_per_dim_se", "0.2400"),
    ],
)
def test_a_number_is_said_with_its_error(address: str, said: str, tmp_path: Path) -> None:
    """In no more digits than give the smallest error of the column two figures."""
    written(tmp_path)
    assert look_up(tmp_path, f"some-file/{address}") == said


def test_no_digit_is_said_that_a_file_does_not_have(tmp_path: Path) -> None:
    measured = written(tmp_path, "name,x,x_se\na,0.0195,0.0004\nb,0.193,0.057\nc,0.5,0.02\n")
    said = [measured.said(row, "x") for row in measured.rows]
    assert said == ["0.0195 ± 0.0004", "0.193 ± 0.057", "0.50 ± 0.02"]


def test_a_difference_is_told_from_0_by_its_interval(tmp_path: Path) -> None:
    measured = written(tmp_path)
    told = [measured.is_told_from_0(row, "less_vpsde") for row in measured.rows]
    assert told == [False, True, False]
    assert not any(measured.is_told_from_0(row, "bits_per_dim") for row in measured.rows)
    below = written(tmp_path, EXAMPLE.replace("0.0260", "-0.0010"))
    assert below.is_told_from_0(below.rows[2], "less_vpsde")


def test_quartiles_are_no_interval_that_tells_a_difference_from_0(tmp_path: Path) -> None:
    text = "name,less,less_q1,less_q3\na,1.04,1.01,1.07\n"
    measured = written(tmp_path, text)
    assert look_up(tmp_path, "some-file/a/less") == "+1.04 (quartiles +1.01 to +1.07)"
    assert measured.said(measured.rows[0], "less", quartiles="") == "+1.04 (+1.01 to +1.07)"
    assert heading(measured, "less") == "less (quartiles)" and heading(measured, "name") == "name"
    assert measured.estimate(measured.rows[0], "less").quartiles
    assert list(measured.estimates) == ["less"]
    assert not measured.is_told_from_0(measured.rows[0], "less")
    with pytest.raises(MeasuredError, match="one end of less's interval; give both"):
        written(tmp_path, text.replace("1.07", ""))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("less_vpsde", "row − vpsde"),
        ("crps_less_ours", "crps − ours"),
        ("half_step_less_whole", "half step − whole"),
        ("test_bits_per_dim", "test bits/dim"),
    ],
)
def test_titles_of_columns(column: str, said: str) -> None:
    """Differences are A − B."""
    assert title(column) == said


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("other/noise/cld/steps", r"no other\.csv in measured/data; there are: some-file"),
        ("some-file/noise/alda/steps", "no row noise/alda; it has: noise/vpsde; noise/cld; den"),
        ("some-file/noise/steps", "no row noise;"),
        ("some-file/noise/cld/nats", "no column nats; it has: score, diffusion, bits_per_dim"),
        ("some-file/steps", "write file/row/column"),
        ("some-file/noise/vpsde/by", "is empty"),
    ],
)
def test_a_number_that_is_not_there(address: str, message: str, tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(MeasuredError, match=message):
        look_up(tmp_path, address)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# machine:", "# device:", "opens with '# device: machine E'; comments are # command: …"),
        ("# machine: machine E", "# machine:", "opens with '# machine:'"),
        (",steps,by", ",steps,steps", "has the columns"),
        ("bits_per_dim,", "bits/dim,", "has the columns"),
        (",20,\n", ",20\n", "has 8 cells in row 3.*header has 9"),
        (",20,\n", ",20,\n\n", "has 0 cells in row 4"),
        ("0.0081", "small", "has bits_per_dim_se 'small'; give a number"),
        ("2.80512,", ",", "an error needs its number"),
        ("0.0081", "-0.0081", "_se -0.0081; it is at least 0"),
        ("0.7043", "", "one end of less_vpsde's interval; give both"),
        ("0.7043", "0.5", "outside its errors"),
        ("noise,cld", "noise/x,cld", "without the slash"),
        (EXAMPLE.partition("noise,vpsde")[2], "", "has 2 cells"),
        (EXAMPLE.partition("score")[2], "", "no rows"),
    ],
)
def test_mistakes_of_a_file(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert EXAMPLE.count(old)
    with pytest.raises(MeasuredError, match=message):
        written(tmp_path, EXAMPLE.replace(old, new, 1))


def test_two_rows_of_one_name(tmp_path: Path) -> None:
    row = "denoiser,cld,-1.5,,-0.0120,-0.0500,0.0260,20,\n"
    with pytest.raises(MeasuredError, match="two rows that are the same"):
        _ = written(tmp_path, EXAMPLE + row).names


def test_what_a_plot_draws(tmp_path: Path) -> None:
    """A colour for each column and value of ``by``; rows by the names that are left."""
    measured = written(tmp_path)
    noise, denoiser = series(measured, measured.rows, ["less_vpsde"], "score")
    assert (noise.label, list(noise.estimates)) == ("noise", ["vpsde", "cld"])
    assert (denoiser.label, list(denoiser.estimates)) == ("denoiser", ["cld"])
    bits, steps = series(measured, measured.rows[:2], ["bits_per_dim", "steps"], None)
    assert (bits.label, steps.label) == ("bits/dim", "steps")
    assert list(bits.estimates) == ["vpsde", "cld"]
    with pytest.raises(MeasuredError, match="no number in by to plot"):
        series(measured, measured.rows, ["by"], None)


def test_a_picture_takes_the_colours_of_the_page(tmp_path: Path) -> None:
    """Its text is text, in the page's colour, on no background; it is the same each time."""
    measured = written(tmp_path)
    drawn = series(measured, measured.rows, ["less_vpsde"], "score")
    picture = svg(drawn, "bits/dim", 'a "plot"', line=0.0)
    assert picture == svg(drawn, "bits/dim", 'a "plot"', line=0.0)
    root = xml.fromstring(picture)
    assert root.attrib["aria-label"] == 'a "plot"' and root.attrib["role"] == "img"
    texts = {"".join(element.itertext()) for element in root.findall(".//{*}text")}
    assert {"vpsde", "cld", "noise", "denoiser", "bits/dim"} <= texts
    styles = " ".join(element.attrib.get("style", "") for element in root.iter())
    assert set(re.findall(r"#\w{6}", styles)) == {"#2f7fc1", "#d0672c"}
    assert "currentColor" in styles


def bars(picture: str, colour: str) -> list[tuple[float, float]]:
    """Left and right ends of the horizontal bars of a colour."""
    style = rf'<path d="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+ *"[^>]*stroke: {colour}'
    return [(float(a), float(b)) for a, b in re.findall(style, " ".join(picture.split()))]


def test_bars_of_a_plot_are_the_intervals(tmp_path: Path) -> None:
    """Their widths are as those of the file."""
    text = "name,bits,bits_se,bits_low,bits_high\na,1,0.5,,\nb,2,,1.75,2.75\nc,3,,,\n"
    measured = written(tmp_path, text)
    picture = svg(series(measured, measured.rows, ["bits"], None), "bits", "plot")
    se, interval, none = bars(picture, "#2f7fc1")
    width = interval[1] - interval[0]
    assert se[1] - se[0] == pytest.approx(width, rel=1e-4)
    assert se[0] - interval[0] == pytest.approx((0.5 - 1.75) * width, rel=1e-4)
    assert none[0] == none[1]


PAGE = """\
# Results

It has {m}`some-file/noise/cld/less_vpsde` bits.

```{measured} some-file
:plot: less_vpsde
:by: score
:line: 0

A *caption*.
```

```{measured} some-file
:where: score=noise
:columns: bits_per_dim less_vpsde
```
"""


def build(folder: Path, page: str) -> str:
    """The page that Sphinx makes, with warnings as errors."""
    (folder / "index.md").write_text(page, encoding="utf-8")
    overrides: dict[str, Any] = {"extensions": ["myst_parser", "docs._ext.measured"]}
    out = folder / "_build"
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            srcdir=folder,
            confdir=None,
            outdir=out,
            doctreedir=out / "doctrees",
            buildername="html",
            confoverrides=overrides,
            status=None,
            warningiserror=True,
            exception_on_warning=True,
        )
        app.build()
    return (out / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_a_page_is_built(tmp_path: Path) -> None:
    written(tmp_path)
    page = build(tmp_path, PAGE)
    assert '<span class="measured">+0.584 (+0.463\u00a0to\u00a0+0.704)</span>' in page
    assert 'aria-label="Plot of row − vpsde, 3 values from -0.012 to 0.5841"' in page
    assert "A <em>caption</em>" in page
    table = page[page.index("<table") : page.index("</table>")]
    cells = [re.sub(r"<(?!strong)[^/][^>]*>|</(?!strong)[^>]*>|\s*\n", "", cell)
             for cell in re.findall(r"<t[hd].*?</t[hd]>", table, re.DOTALL)]  # fmt: skip
    assert cells == [
        *("diffusion", "bits/dim", "row − vpsde"),
        *("vpsde", "2.8051\u00a0±\u00a00.0081", "0"),
        *(
            "cld",
            "3.3891\u00a0±\u00a00.2400",
            "<strong>+0.584 (+0.463\u00a0to\u00a0+0.704)</strong>",
        ),
    ]
    text = re.sub("<[^>]+>", "", page)
    assert "python -m inference.train" in text
    assert "Machine E, 2026-11-27, seeds 0, 1, bits/dim. In all two rows. some-file.csv" in text
    assert len(list((tmp_path / "_build/_downloads").rglob("some-file.csv"))) == 1
    for wrong, message in (
        (":where: score", "write column=value"),
        (":where: score=x", "no row where"),
        (":columns: nats", "no column nats"),
        (":plot: nats", "no column nats"),
        (":line: 0", "'line' but no 'plot'"),
    ):
        with pytest.raises(MeasuredError, match=message):
            build(tmp_path, f"# Title\n\n```{{measured}} some-file\n{wrong}\n```\n")
    assert "<details>" not in page
    written(tmp_path, "name,x\n" + "".join(f"{i},{i}\n" for i in range(16)), "long-file")
    long = build(tmp_path, "# Title\n\n```{measured} long-file\n```\n")
    assert "<details><summary>All 16 rows</summary>" in long
    with pytest.raises(MeasuredError, match=r"no other\.csv"):
        build(tmp_path, "# Title\n\n```{measured} other\n```\n")


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_as_it_should_be(name: str) -> None:
    measured = parse(FILES[name])
    for column in measured.estimates:
        for row in measured.rows:
            estimate = measured.estimate(row, column)
            assert estimate.value is None or math.isfinite(estimate.value)
            assert measured.said(row, column) is not None


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_shown_with_its_command(name: str) -> None:
    """By a table, as roles and plots give numbers alone."""
    tables = [
        block
        for page in PAGES.values()
        for block in re.findall(rf"^```\{{measured\}} {name}\n(.*?)```", page, re.M | re.S)
        if ":plot:" not in block
    ]
    assert tables, f"no page of docs/measured has a table of {name}.csv"


def prose(page: str) -> str:
    """A page without blocks, code, roles, mathematics and the targets of links."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(\{\w+\})?`[^`]*`|\$[^$]*\$|\]\([^)]*\)", "", text)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_says_a_result_itself(page: str) -> None:
    typed = re.findall(r".{0,30}(?:± *\d|\d\.\d).{0,30}", prose(page))
    assert not typed, f"{page} says {typed}; put numbers into measured/data and use the role m"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_with_its_answer_and_a_plot(page: str) -> None:
    text = PAGES[page]
    assert len(text.split()) <= WORDS
    if page == "index.md":
        return
    title, answer, rest = text.split("\n\n", 2)
    assert title.startswith("# ") and answer[0].isalnum()
    first = re.search(r"^```\{(\w+)\}.*?^```", rest, re.DOTALL | re.MULTILINE)
    assert first is not None, f"{page} has no plot"
    assert first[1] in ("image", "figure") or ":plot:" in first[0], f"{page} opens with {first[0]}"


README = (DOCS.parent / "README.md").read_text(encoding="utf-8")


def finding(i: int) -> str:
    """A finding of the first page, by its number there, on one line."""
    section = README.partition("\n## Five findings\n")[2].partition("\n## ")[0]
    items = re.findall(r"^\d\. (.*?)(?=^\d\. |\Z)", section, re.DOTALL | re.MULTILINE)
    assert len(items) == 5
    return " ".join(items[i - 1].split())


def column(name: str, column: str, **names: str) -> list[Estimate]:
    """What a file has measured in a column, in the rows of these names."""
    measured = load(DOCS, name)
    here = [measured.estimate(row, column) for row in measured.where(names)]
    return [estimate for estimate in here if estimate.value is not None]


def span(values: Iterable[float], digits: int) -> str:
    """The least and the most, as a sentence says them."""
    values = sorted(values)
    return f"{values[0]:.{digits}f} to {values[-1]:.{digits}f}"


def test_finding_1_diffusions_of_the_same_ends_have_the_same_bound() -> None:
    rows = load(DOCS, "denoisers-ends").rows  # MALDA and ALDA are one training there
    trainings = {tuple(row[column] for column in row if column != "diffusion") for row in rows}
    assert "three diffusions" in finding(1) and len(trainings) == 3
    differences = column("denoisers-ends", "less_vpsde")
    assert all(d.ends[0] <= 0 <= d.ends[1] for d in differences)
    farthest = max(abs(end) for d in differences for end in d.ends)
    assert f"within ± {farthest:.2f} bits/dim" in finding(1)


def test_finding_2_raw_scores_gain_from_learning() -> None:
    gains = column("raw-scores-digits", "less_start")
    assert all(gain.ends[1] < 0 for gain in gains)
    assert f"by {span((-g.value for g in gains if g.value), 2)} bits/dim on digits" in finding(2)
    measured = load(DOCS, "raw-scores-digits")
    for row in measured.rows:
        if row["diffusion"] not in ("vpsde", "learned1"):  # without auxiliary variables
            assert measured.estimate(row, "less_vpsde").ends[0] > 0


def test_finding_3_parameterizations_differ_more() -> None:
    def bounds(name: str, **names: str) -> list[float]:
        here = column(name, "test_bits_per_dim", **names)
        return [estimate.value for estimate in here if estimate.value is not None]

    discrete = bounds("denoisers-digits", score="discrete")
    gaussian = bounds("denoisers-digits", score="denoiser")
    noise = bounds("raw-scores-digits")
    assert f"{span(discrete, 1)} bits/dim by a discrete denoiser" in finding(3)
    assert f"{span(gaussian, 1)} by a Gaussian one" in finding(3)
    assert f"{span(noise, 1)} by a noise prediction" in finding(3)
    assert max(discrete) < min(*gaussian, *noise)


def of_denoisers(name: str, sampler: str) -> list[tuple[float, float]]:
    """Energy distances of 20 calls less those of Euler-Maruyama's 500, with standard errors."""
    measured, here = load(DOCS, name), []
    for row in measured.where({"score": "denoiser"}):
        few, long = (measured.estimate(row, column) for column in (f"{sampler}_20", "euler_500"))
        assert few.value is not None and few.se and long.value is not None and long.se
        here.append((few.value - long.value, math.hypot(few.se, long.se)))
    assert len(here) == 5
    return here


@pytest.mark.parametrize(
    ("data", "sampler"),
    [("digits", "exponential"), ("Fashion-MNIST", "exponential"), ("Fashion-MNIST", "stochastic")],
)
def test_differences_of_samples_are_those_of_the_tables(data: str, sampler: str) -> None:
    """But for what rounding leaves."""
    here = of_denoisers(f"samples-{data.partition('-')[0].lower()}", sampler)
    mean = (sum(d for d, _ in here) / 5, math.hypot(*(se for _, se in here)) / 5)
    for which, (value, se) in {"least": min(here), "most": max(here), "mean": mean}.items():
        name = f"{data}, {sampler} at 20, {which}"
        (said,) = column("samples-differences", "less_euler_500", samples=name)
        assert (said.value, said.se) == pytest.approx((value, se), abs=1.01), name


def test_finding_4_twenty_calls_do_as_well_on_digits_alone() -> None:
    digits, clothes = (
        column("samples-differences", "less_euler_500", samples=f"{data}, exponential at 20, mean")[
            0
        ]
        for data in ("digits", "Fashion-MNIST")
    )
    assert digits.value is not None and digits.se and abs(digits.value) < 2 * digits.se
    assert clothes.value is not None and clothes.se and clothes.value > 2 * clothes.se
    assert all(d > 0 for d, _ in of_denoisers("samples-fashion", "exponential"))
    assert f"for all five denoisers, by {clothes.value:.0f} ± {clothes.se:.0f} th" in finding(4)


def test_finding_5_a_pixelcnn_has_the_better_bound_of_digits() -> None:
    (less,) = column("peers-digits", "less_ours", model="PixelCNN")
    assert less.ends[1] < 0 and less.value is not None
    assert f"the better bound on 8×8 digits, by {-less.value:.2f} bits/dim" in finding(5)
    ours, theirs = (
        column("peers-digits", "training_s", model=model)[0].value
        for model in ("diffusion (ours)", "PixelCNN")
    )
    assert ours and theirs and abs(ours / theirs - 1) < 0.05


def test_the_first_command_takes_the_minutes_that_were_measured() -> None:
    seconds = [
        column("test-bounds-digits", "seconds", training=training)[0].value or 0.0
        for training in ("2,000 steps", "again")
    ]
    assert [round(s / 60) for s in sorted(seconds)] == [2, 4]
    assert "in two to four minutes on two CPU cores" in README


def test_the_first_page_gives_the_bounds_of_all_splits() -> None:
    first, *others = (
        column("test-bounds-digits", "test_bits_per_dim", training=name)[0].value or 0.0
        for name in ("2,000 steps", *(f"split {i}" for i in range(1, 6)))
    )
    words = " ".join(README.split())
    (today,) = column(
        "test-bounds-digits", "test_bits_per_dim", training="today, ends found on the host"
    )
    assert today.value is not None
    assert f"the test bound, {today.value:.3f} ± " in words
    assert f"An earlier version had {first:.3f}, and on " in words
    assert f"(docs/measured/test-bounds.md) {span(others, 3)}." in words
