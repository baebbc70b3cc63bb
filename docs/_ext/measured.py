"""Measured numbers in the documentation: tables, plots and figures in sentences, from CSV files.

A page never says a result itself. It names a file of ``docs/measured/data`` and this extension puts
the numbers there when the site is built, so that text, table and plot cannot differ.

**A file** ``TOPIC-NAME.csv`` opens with comments, ``# command:``, ``# machine:``, ``# date:``,
``# seeds:``, ``# unit:`` and ``# note:``. Those that are not known are left out, and any may be
given again. Then come a header and rows. The first columns, as many as tell all rows apart, name
the row. A column ``x`` may have neighbours: ``x_se``, its standard error, or ``x_low`` and
``x_high``, its 95% interval, or ``x_q1`` and ``x_q3``, its quartiles. An empty cell was not
measured. The words that a column's name says with underscores are its title. ``a_less_b`` is the
difference a − b and has that title; ``less_b`` is what the row has minus what b has, row − b. A
difference, or a column ``difference``, is given with its sign, and in bold where its interval
excludes 0.

**A number in a sentence**, with its error, is the role ``m`` of file, names of the row, column::

    It has {m}`denoisers-digits/denoiser/cld/test_bits_per_dim` bits/dim.

**A table**, under the command that made it and above machine, date and seeds, or **a plot**, whose
bars are intervals or else standard errors, is the directive ``measured``::

    ```{measured} denoisers-digits
    :where: score=denoiser; diffusion=cld
    :columns: test_bits_per_dim less_vpsde
    ```

    ```{measured} denoisers-digits
    :plot: less_vpsde
    :by: score
    :line: 0

    A caption.
    ```

``where`` keeps the rows whose names are these. ``columns`` chooses columns of the table, all if
left out. ``plot`` gives a plot of these columns in place of the table. ``by`` names the column that
tells colours apart, ``line`` is where to draw a line, and ``log`` makes the axis logarithmic.
Tables of more than 15 rows are folded.

A number has the digits that the file has. It has fewer where these give the smallest error of its
column, or half the width of its interval, two figures already.

A file, row or column that is not there, or a file that is not as above, ends the build.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
from docutils import nodes
from docutils.parsers.rst import directives
from matplotlib.figure import Figure
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective, SphinxRole

from docs._ext.figures import in_page

FACTS = ("command", "machine", "date", "seeds", "unit", "note")
"""What a file's comments may say, in the order in which a page gives it."""
PAIRS = (("_low", "_high"), ("_q1", "_q3"))
"""Endings of the columns of ends: of 95% intervals, and quartiles."""
ERRORS = ("_se", *itertools.chain(*PAIRS))
"""Endings of the columns that say how exact their neighbour is."""
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")
UNFOLDED = 15
"""Rows of a table that is not folded."""
COLOURS = ("#2f7fc1", "#d0672c", "#35925a", "#a060c0", "#8a8a30")
MARKERS = ("o", "s", "^", "D", "v")


class MeasuredError(SphinxError):
    """A mistake in a file of measured numbers, or in how a page asks for one."""

    category = "Measured numbers"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A measured number: its text in the file, its value if it is one, and either error."""

    text: str
    value: float | None = None
    se: float | None = None
    interval: tuple[float, float] | None = None
    quartiles: bool = False

    @property
    def half_width(self) -> float | None:
        """The standard error, or half the width of the interval."""
        if self.interval is not None:
            return (self.interval[1] - self.interval[0]) / 2
        return self.se

    @property
    def ends(self) -> tuple[float, float]:
        """The interval, or else one standard error to both sides."""
        if self.value is None:
            return (math.nan, math.nan)
        return self.interval or (self.value - (self.se or 0.0), self.value + (self.se or 0.0))


def number(text: str) -> float | None:
    """The number that a cell is; None if it is text."""
    return float(text) if NUMBER.fullmatch(text) else None


def decimals(text: str) -> int:
    """Digits after the point in a cell."""
    return len(text.partition(".")[2])


@dataclasses.dataclass(frozen=True)
class Measured:
    """A file of measured numbers.

    Attributes:
        name: the file's name without ``.csv``.
        facts: what its comments say, lists by :data:`FACTS`.
        columns: all columns in order.
        rows: cells by column.
    """

    name: str
    facts: Mapping[str, Sequence[str]]
    columns: Sequence[str]
    rows: Sequence[Mapping[str, str]]

    @property
    def names(self) -> Sequence[str]:
        """The columns that name a row: the fewest, from the first, that tell all rows apart."""
        for i in range(1, len(self.columns) + 1):
            if len({tuple(row[c] for c in self.columns[:i]) for row in self.rows}) == len(
                self.rows
            ):
                return self.columns[:i]
        raise MeasuredError(f"{self.name}.csv has two rows that are the same; leave one out")

    @property
    def estimates(self) -> Sequence[str]:
        """The columns of measured numbers and of remarks, without names and without errors."""
        return [
            column
            for column in self.columns[len(self.names) :]
            if not any(column == f"{other}{end}" for other in self.columns for end in ERRORS)
        ]

    def row(self, names: Sequence[str]) -> Mapping[str, str]:
        """The row of these names."""
        for row in self.rows:
            if [row[column] for column in self.names] == list(names):
                return row
        known = "; ".join("/".join(row[column] for column in self.names) for row in self.rows)
        raise MeasuredError(f"{self.name}.csv has no row {'/'.join(names)}; it has: {known}")

    def where(self, names: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
        """The rows that have these values in these columns."""
        for column in names:
            self.check_column(column)
        rows = [row for row in self.rows if all(row[c] == value for c, value in names.items())]
        if not rows:
            raise MeasuredError(f"{self.name}.csv has no row where {dict(names)}")
        return rows

    def check_column(self, column: str) -> None:
        if column not in self.columns:
            known = ", ".join(self.columns)
            raise MeasuredError(f"{self.name}.csv has no column {column}; it has: {known}")

    def estimate(self, row: Mapping[str, str], column: str) -> Estimate:
        """What a row has in a column, with its error."""
        self.check_column(column)
        se = number(row.get(f"{column}_se", ""))
        for pair in PAIRS:
            low, high = (number(row.get(column + end, "")) for end in pair)
            if low is not None and high is not None:
                quartiles = pair != PAIRS[0]
                return Estimate(row[column], number(row[column]), se, (low, high), quartiles)
        return Estimate(row[column], number(row[column]), se)

    def is_difference(self, column: str) -> bool:
        return bool({"difference", "less"} & set(column.split("_")))

    def digits(self, column: str) -> int:
        """The most decimals that a column's numbers are given with."""
        here = [self.estimate(row, column) for row in self.rows]
        widths = [e.half_width for e in here if e.half_width]
        most = max((decimals(e.text) for e in here if e.value is not None), default=0)
        return min(most, max(0, 1 - math.floor(math.log10(min(widths))))) if widths else most

    def said(self, row: Mapping[str, str], column: str, quartiles: str = "quartiles ") -> str:
        """A number as pages say it: ``1.875 ± 0.004``, or ``+0.03 (+0.02 to +0.04)``.

        Args:
            quartiles: what stands before quartiles, so that nobody takes them for an interval.
        """
        estimate = self.estimate(row, column)
        if estimate.value is None or "e" in estimate.text:
            return estimate.text
        own = [estimate.text, *(row.get(column + end, "") for end in ERRORS)]
        most = min(self.digits(column), max(map(decimals, own)))
        sign = "+" if self.is_difference(column) and estimate.value else ""
        value = f"{estimate.value:{sign},.{most}f}"
        if estimate.interval is not None:
            low, high = (f"{end:{sign},.{most}f}" for end in estimate.interval)
            what = quartiles if estimate.quartiles else ""
            return f"{value} ({what}{low} to {high})"
        return value if estimate.se is None else f"{value} ± {estimate.se:,.{most}f}"

    def is_told_from_0(self, row: Mapping[str, str], column: str) -> bool:
        """Whether a difference has an interval without 0."""
        estimate = self.estimate(row, column)
        if estimate.interval is None or estimate.quartiles or not self.is_difference(column):
            return False
        return estimate.interval[0] > 0 or estimate.interval[1] < 0


def parse(path: Path) -> Measured:
    """A file of measured numbers, checked."""
    lines = path.read_text(encoding="utf-8").splitlines()
    facts: dict[str, list[str]] = {}
    for line in itertools.takewhile(lambda line: line.startswith("#"), lines):
        fact, colon, said = line[1:].partition(":")
        if fact.strip() not in FACTS or not colon or not said.strip():
            expected = ", ".join(f"# {fact}: …" for fact in FACTS)
            raise MeasuredError(f"{path.name} opens with {line!r}; comments are {expected}")
        facts.setdefault(fact.strip(), []).append(said.strip())
    table = list(csv.reader(lines[sum(map(len, facts.values())) :], strict=True))
    if len(table) < 2:
        raise MeasuredError(f"{path.name} has no rows; it needs a header and a row")
    header, *body = table
    if len(set(header)) < len(header) or not all(re.fullmatch(r"\w+", name) for name in header):
        raise MeasuredError(
            f"{path.name} has the columns {header}; each is another word_of_letters"
        )
    for i, cells in enumerate(body):
        if len(cells) != len(header):
            raise MeasuredError(
                f"{path.name} has {len(cells)} cells in row {i + 1}, {cells}, where the header has "
                f"{len(header)}; put quotes around a cell with commas, and leave no line empty"
            )
    rows = [dict(zip(header, cells, strict=True)) for cells in body]
    measured = Measured(path.stem, facts, header, rows)
    for row in rows:
        for column in header:
            check_neighbours(measured, row, column)
        if any("/" in row[column] for column in measured.names):
            names = [row[column] for column in measured.names]
            raise MeasuredError(f"{path.name} names a row {names}; write it without the slash")
    return measured


def check_neighbours(measured: Measured, row: Mapping[str, str], column: str) -> None:
    """That errors stand beside a number, and an interval around it."""
    for other in [column.removesuffix(end) for end in ERRORS if column.endswith(end)]:
        if row[column] and number(row[column]) is None:
            raise MeasuredError(f"{measured.name}.csv has {column} {row[column]!r}; give a number")
        if row[column] and number(row.get(other, "")) is None:
            raise MeasuredError(
                f"{measured.name}.csv has {column} {row[column]} beside {other} "
                f"{row.get(other, 'nowhere')!r}; an error needs its number"
            )
    estimate = measured.estimate(row, column)
    for pair in PAIRS:
        ends = [row.get(column + end, "") for end in pair]
        if bool(ends[0]) != bool(ends[1]):
            raise MeasuredError(
                f"{measured.name}.csv has one end of {column}'s interval; give both"
            )
    if estimate.se is not None and estimate.se < 0:
        raise MeasuredError(f"{measured.name}.csv has {column}_se {estimate.se}; it is at least 0")
    if estimate.value is not None and not estimate.ends[0] <= estimate.value <= estimate.ends[1]:
        raise MeasuredError(
            f"{measured.name}.csv has {column} {estimate.value} outside its errors {estimate.ends}"
        )


def load(source: Path, name: str) -> Measured:
    """The file of this name in the documentation whose pages are in ``source``."""
    path = source / "measured" / "data" / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.csv")))
        raise MeasuredError(f"There is no {name}.csv in measured/data; there are: {known}")
    return parse(path)


def look_up(source: Path, address: str) -> str:
    """What the role ``m`` says for ``file/names of the row/column``."""
    name, *names, column = address.split("/")
    if not names:
        raise MeasuredError(f"{address!r} says no number; write file/row/column")
    measured = load(source, name)
    said = measured.said(measured.row(names), column)
    if not said:
        raise MeasuredError(f"{address} is empty in {name}.csv; it was not measured")
    return said


def title(column: str) -> str:
    """A column's name as a table's head and an axis say it."""
    text = column.replace("bits_per_dim", "bits/dim").replace("_", " ")
    text = re.sub(r"^less (?=\w)", "row less ", text).replace(" less ", " − ")
    return text.replace("log snr", "log SNR").removesuffix(" kl") + " KL" * text.endswith(" kl")


def heading(measured: Measured, column: str) -> str:
    """The head of a table's column: its title, and what brackets are where they are quartiles."""
    here = [measured.estimate(row, column) for row in measured.rows]
    return title(column) + " (quartiles)" * any(estimate.quartiles for estimate in here)


def varying(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Sequence[str]:
    """Those columns that do not have one value in all the rows; the first if there is none."""
    several = [column for column in columns if len({row[column] for row in rows}) > 1]
    return several or columns[:1]


@dataclasses.dataclass(frozen=True)
class Series:
    """What a plot draws in one colour: its label, and estimates by the labels of rows."""

    label: str
    estimates: Mapping[str, Estimate]


def series(
    measured: Measured, rows: Sequence[Mapping[str, str]], columns: Sequence[str], by: str | None
) -> list[Series]:
    """One for each column and each value of ``by``; empty cells are left out."""
    names = [name for name in varying(rows, measured.names) if name != by]
    drawn: dict[str, dict[str, Estimate]] = {}
    for column in columns:
        for row in rows:
            label = ", ".join(
                [title(column)] * (len(columns) > 1) + ([row[by]] if by is not None else [])
            )
            estimate = measured.estimate(row, column)
            if estimate.value is not None:
                place = ", ".join(row[name] for name in names)
                drawn.setdefault(label, {})[place] = estimate
    if not drawn:
        raise MeasuredError(f"{measured.name}.csv has no number in {', '.join(columns)} to plot")
    if len(drawn) > len(COLOURS):
        raise MeasuredError(
            f"A plot of {measured.name}.csv needs {len(drawn)} colours, for {', '.join(drawn)}; "
            f"choose at most {len(COLOURS)} by 'where'"
        )
    return [Series(label, estimates) for label, estimates in drawn.items()]


def draw(
    drawn: Sequence[Series], axis: str, line: float | None = None, log: bool = False
) -> Figure:
    """Intervals as horizontal bars, a row for each label, from above in the order of the file."""
    places = list(dict.fromkeys(place for each in drawn for place in each.estimates))
    step = 0.7 / len(drawn)
    lines = max(len(textwrap.wrap(place, 34)) for place in places)
    height = (0.12 + max(0.11 * len(drawn), 0.15 * lines)) * len(places)
    height += 0.6 + 0.2 * (len(drawn) > 1)
    figure = Figure(figsize=(6.2, height), layout="constrained")
    axes = figure.add_subplot()
    for i, each in enumerate(drawn):
        offset = (i - (len(drawn) - 1) / 2) * step
        heights = [places.index(place) + offset for place in each.estimates]
        values = [estimate.value for estimate in each.estimates.values()]
        lows, highs = zip(*(estimate.ends for estimate in each.estimates.values()), strict=True)
        axes.hlines(heights, lows, highs, color=COLOURS[i], linewidth=2)
        style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4.5, "linestyle": "none"}
        axes.plot(values, heights, label=each.label, **style)  # type: ignore[arg-type]
    if line is not None:
        axes.axvline(line, color="black", linewidth=0.8, linestyle="--", zorder=0)
    if log:
        axes.set_xscale("log")
    axes.set_yticks(range(len(places)), [textwrap.fill(place, 34) for place in places])
    axes.set_ylim(len(places) - 0.4, -0.6)
    figure.supxlabel(axis, fontsize="medium")
    axes.grid(axis="x", color="black", alpha=0.15, linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if len(drawn) > 1:
        figure.legend(loc="outside upper center", ncols=len(drawn), frameon=False)
    return figure


def svg(
    drawn: Sequence[Series], axis: str, alt: str, line: float | None = None, log: bool = False
) -> str:
    """A plot as part of a page, which says ``alt`` to those who do not see it."""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": alt}
    with matplotlib.rc_context(settings):
        file = io.StringIO()
        figure = draw(drawn, axis, line, log)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return in_page(file.getvalue(), alt)


class MeasuredNumber(SphinxRole):
    """The role ``m``: one number of a file, with its error."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        source = Path(self.env.srcdir)
        said = look_up(source, self.text)
        self.env.note_dependency(str(source / "measured/data" / f"{self.text.split('/')[0]}.csv"))
        return [nodes.inline(self.rawtext, unbroken(said), classes=["measured"])], []


class MeasuredFile(SphinxDirective):
    """The directive ``measured``: a table of a file, or a plot."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "where": directives.unchanged_required,
        "columns": str.split,
        "plot": str.split,
        "by": directives.unchanged_required,
        "line": float,
        "log": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        source = Path(self.env.srcdir)
        measured = load(source, self.arguments[0])
        self.env.note_dependency(str(source / "measured/data" / f"{measured.name}.csv"))
        names = {}
        for pair in filter(None, self.options.get("where", "").split(";")):
            column, equals, value = pair.partition("=")
            if not equals:
                raise MeasuredError(f"'where' of {measured.name} is {pair!r}; write column=value")
            names[column.strip()] = value.strip()
        rows = measured.where(names)
        if "plot" in self.options:
            return self.plot(measured, rows)
        for option in ("by", "line", "log"):
            if option in self.options:
                raise MeasuredError(f"{measured.name} has '{option}' but no 'plot' to have it")
        return self.table(measured, rows)

    def plot(self, measured: Measured, rows: Sequence[Mapping[str, str]]) -> list[nodes.Node]:
        columns, by = self.options["plot"], self.options.get("by")
        for column in [*columns, *filter(None, [by])]:
            measured.check_column(column)
        drawn = series(measured, rows, columns, by)
        every = [estimate for each in drawn for estimate in each.estimates.values()]
        unit = "".join(measured.facts.get("unit", [])[:1])
        axis = title(columns[0]) if len(columns) == 1 else ""
        axis = axis if unit in axis else ", ".join(filter(None, [axis, unit]))
        if any(estimate.quartiles for estimate in every):
            axis += " (quartiles)"
        elif any(estimate.interval for estimate in every):
            axis += " (95% interval)"
        elif any(estimate.se for estimate in every):
            axis += " (± standard error)"
        values = [estimate.value for estimate in every if estimate.value is not None]
        what = " and ".join(title(column) for column in columns)
        alt = f"Plot of {what}, {len(every)} values from {min(values):g} to {max(values):g}"
        picture = svg(drawn, axis, alt, self.options.get("line"), "log" in self.options)
        raw = nodes.raw("", picture, format="html", classes=["drawn"], alt=alt)
        figure = nodes.figure("", raw, classes=["measured"])
        if self.content:
            text, messages = self.parse_inline(" ".join(self.content))
            figure += [nodes.caption("", "", *text), *messages]
        return [figure]

    def table(self, measured: Measured, rows: Sequence[Mapping[str, str]]) -> list[nodes.Node]:
        values = self.options.get("columns", measured.estimates)
        for column in values:
            measured.check_column(column)
        columns = [*varying(rows, measured.names), *values]
        group = nodes.tgroup(cols=len(columns))
        group += [nodes.colspec(colwidth=1) for _ in columns]
        head = nodes.row("", *(entry(heading(measured, column)) for column in columns))
        body = [nodes.row("", *cells(measured, row, columns)) for row in rows]
        group += [nodes.thead("", head), nodes.tbody("", *body)]
        table: list[nodes.Node] = [nodes.table("", group)]
        if len(rows) > UNFOLDED:
            opens = f"<details><summary>All {len(rows)} rows</summary>"
            table.insert(0, nodes.raw("", opens, format="html"))
            table.append(nodes.raw("", "</details>", format="html"))
        commands = "\n".join(measured.facts.get("command", []))
        block = [nodes.literal_block(commands, commands, language="bash")] if commands else []
        return [*block, *table, self.facts(measured)]

    def facts(self, measured: Measured) -> nodes.paragraph:
        """Where and when a file was measured, remarks, and the file itself."""
        facts = {fact: "; ".join(said) for fact, said in measured.facts.items()}
        if "seeds" in facts:
            seeds = facts["seeds"]
            facts["seeds"] = f"seed {seeds}" if seeds.isdigit() else f"seeds {seeds}"
        where = ", ".join(facts[fact] for fact in FACTS[1:5] if fact in facts)
        sentences = [where, *measured.facts.get("note", [])]
        text = " ".join(f"{said[:1].upper()}{said[1:].rstrip('.')}." for said in sentences if said)
        children, messages = self.parse_inline(text)
        link = addnodes.download_reference("", "", nodes.literal(text=f"{measured.name}.csv"))
        link["refdoc"] = self.env.docname
        link["reftarget"] = f"/measured/data/{measured.name}.csv"
        return nodes.paragraph("", "", *children, *messages, nodes.Text(" "), link)


def unbroken(said: str) -> str:
    """A number and its error without a space at which a line may end."""
    return re.sub(r"(?<=\d) (±|to) (?=[+-]?\d)", "\u00a0\\1\u00a0", said)


def entry(text: str, bold: bool = False) -> nodes.entry:
    inline: nodes.Node = nodes.strong(text=text) if bold else nodes.Text(text)
    return nodes.entry("", nodes.paragraph("", "", inline))


def cells(
    measured: Measured, row: Mapping[str, str], columns: Sequence[str]
) -> Iterator[nodes.entry]:
    """A row of a table; what was not measured is a dash."""
    for column in columns:
        if column in measured.names:
            yield entry(row[column])
        else:
            said = unbroken(measured.said(row, column, quartiles=""))
            yield entry(said or "–", measured.is_told_from_0(row, column))


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the role and the directive to Sphinx."""
    app.add_role("m", MeasuredNumber())
    app.add_directive("measured", MeasuredFile)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
