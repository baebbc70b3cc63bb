"""Pictures of samples: images in a grid, columns of a table, or points coloured by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import Problem, Tabular
from models.data import SHOWN_CLASSES
from pyro_mdm.conditioning import Labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = 14
"""The height of the names above columns of images, pixels."""

LEGEND = 12
"""The most labels in a picture's legend."""


def columns(problem: Problem) -> int | None:
    """The columns of a picture of samples given each class in turn; None for other data."""
    context = problem.context
    return context.num_classes if isinstance(context, Labels) else None


Given = float | str | Sequence[float] | Sequence[str]
"""The contexts of --given: a class, several in turn, or a vector."""


def contexts(problem: Problem, n: int, given: Given | None) -> Tensor | None:
    """The contexts of n samples; None if the data have none.

    Args:
        given: a class, by its name if it has one, several in turn, or a vector (ValueError if the
            data have no such context); None: each class in turn, or contexts of test data.
    """
    context = problem.context
    if given is None:
        return problem.contexts_in_turn(n)
    if context is None:
        raise ValueError(
            f"--given is {given}, but the model of the run has no context; leave it "
            "out, or use a run with --condition"
        )
    if problem.class_names is not None:
        numbers = [_class_number(problem.class_names, one) for one in _listed(given)]
        return torch.tensor(numbers)[torch.arange(n) % len(numbers)]
    if names := [one for one in _listed(given) if isinstance(one, str)]:
        raise ValueError(
            f"--given is {names[0]!r}, and the contexts of {problem.name} are numbers; give one, "
            "such as 3"
        )
    values = torch.as_tensor(given)
    if isinstance(context, Labels):
        values = values.reshape(-1)[torch.arange(n) % values.numel()]
        whole = values.round().long()
        return context.check(whole if bool((whole == values).all()) else values)
    return context.check(values.float().reshape(1, -1).expand(n, -1))


def _listed(given: Given) -> Sequence[float] | Sequence[str]:
    return [given] if isinstance(given, float | int | str) else given  # type: ignore[return-value]


def _class_number(names: Sequence[str], given: float | str) -> int:
    """The number of a class by its name, which may look like a number."""
    name = given if isinstance(given, str) else f"{given:g}"
    if name not in names:
        raise ValueError(
            f"--given is {name!r}, expected the name of a class: {', '.join(names[:SHOWN_CLASSES])}"
            f"{', …' if len(names) > SHOWN_CLASSES else ''}"
        )
    return names.index(name)


def _captioned(grid: Tensor, names: Sequence[str]) -> Tensor:
    """A grid of images, uint8 (3, height, width), below the names of its columns, cut to fit."""
    from PIL import Image, ImageDraw

    width = grid.shape[2] / len(names)
    strip = Image.new("RGB", (grid.shape[2], CAPTION), "white")
    draw = ImageDraw.Draw(strip)
    for k, name in enumerate(names):
        text = name.encode("latin-1", "replace").decode(
            "latin-1"
        )  # of the font that is always there
        while text and draw.textlength(text) > width - 4:
            text = text[:-1]
        draw.text((k * width + 3, 1), text, fill="black")
    pixels = torch.from_numpy(np.asarray(strip).copy()).movedim(-1, 0)
    return torch.cat([pixels, grid], 1)


def picture(
    problem: Problem, x: Tensor, *, columns: int | None = None, context: Tensor | None = None
) -> Tensor:
    """A picture of data x in model space, uint8 (3, height, width): images in a grid, the columns
    of a table beside those of its training rows, or points.

    Images of classes that have names are below these, where each class has a column.
    Points are shown by their first two coordinates, with test data, and coloured by label if there
    are labels.

    Args:
        columns: number of columns, see :func:`~pyro_mdm.plots.pictures.image_grid`.
        context: contexts of x, (n, …), if any, for colours.
    """
    from pyro_mdm.plots.figures import new_figure
    from pyro_mdm.plots.pictures import image_grid
    from pyro_mdm.plots.tables import marginals_figure

    images = problem.to_images(x)
    if images is not None:
        grid, names = image_grid(images, columns=columns), problem.class_names
        return grid if names is None or columns != len(names) else _captioned(grid, names[: len(x)])
    if isinstance(problem, Tabular):
        return pixels_of(marginals_figure(*observed_and_drawn(problem, x)))
    test = problem.part("test")[:500]
    data = problem.to_model_space(test.data).flatten(1)
    labelled = isinstance(problem.context, Labels) and context is not None
    figure = new_figure(3.9 if labelled else 3.2, 3.2)
    axes = figure.add_subplot()
    if labelled:
        assert isinstance(problem.context, Labels)
        _draw_labelled(axes, data, test.context, x.flatten(1), context, problem.context.num_classes)
        figure.legend(loc="outside right upper", fontsize=7)
    else:
        for points, style, label in ((data, "C7.", "test data"), (x.flatten(1), "C0.", "samples")):
            axes.plot(*plane(points), style, ms=3, alpha=0.6, label=label)
        axes.legend(loc="upper right", fontsize=8)
    axes.set_xlabel("x_0")
    axes.set_ylabel("x_1")
    axes.set_aspect("equal", adjustable="datalim")
    return pixels_of(figure)


def pixels_of(figure: Figure) -> Tensor:
    """A figure as uint8 (3, height, width)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.copy()).movedim(-1, 0)


OBSERVED = 5_000
"""The most training rows in pictures of tables."""


def observed_and_drawn(problem: Tabular, x: Tensor) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Training rows of a table, and rows x in model space, as pictures of tables take them."""
    train = problem.train[torch.linspace(0, len(problem.train) - 1, OBSERVED).long().unique()]
    observed = problem.to_model_space(train, torch.Generator().manual_seed(0))
    return problem.as_columns(observed), problem.as_columns(x)


Plane = tuple[NDArray[np.float32], NDArray[np.float32]]
"""The first two coordinates of points, each (n,)."""

NOWHERE: Plane = (np.zeros(0, np.float32), np.zeros(0, np.float32))


def plane(points: Tensor) -> Plane:
    """The first two coordinates of points (n, d); the second is 0 for d = 1."""
    second = points[:, 1] if points.shape[1] > 1 else torch.zeros(len(points))
    return points[:, 0].numpy(), second.numpy()


def _draw_labelled(
    axes: Axes,
    data: Tensor,
    labels: Tensor | None,
    x: Tensor,
    given: Tensor | None,
    num_classes: int,
) -> None:
    """Draw test data as crosses and samples as dots, coloured by label, black where unknown."""
    from matplotlib import colormaps

    ten = num_classes <= 10
    colours = colormaps["tab10" if ten else "turbo"]

    def colour(label: int) -> str | tuple[float, float, float, float]:
        return "black" if label < 0 else colours(label if ten else label / (num_classes - 1))

    def scatter(
        points: Plane,
        colours: list[str | tuple[float, float, float, float]] | str,
        size: float,
        marker: str,
        *,
        alpha: float | None = None,
        label: str | None = None,
    ) -> None:
        width = 0.7 if marker == "+" else 0.0
        axes.scatter(
            *points, s=size, c=colours, marker=marker, linewidths=width, alpha=alpha, label=label
        )

    for points, classes, marker, size, alpha, what in (
        (data, labels, "+", 12, 0.35, "test data"),
        (x, given, "o", 7, 0.9, "samples"),
    ):
        numbers = [-1] * len(points) if classes is None else classes.tolist()
        scatter(plane(points), [colour(k) for k in numbers], size, marker, alpha=alpha)
        scatter(NOWHERE, "0.4", 14, marker, label=what)
    for k in range(num_classes if num_classes <= LEGEND else 0):
        scatter(NOWHERE, [colour(k)], 14, "s", label=f"label {k}")
