"""Simulators by name, and observations of them from files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.folders.runs import RunError
from inference.settings.names import find
from inference.simulators import Simulator
from models import DataError
from models.csv_files import rows_of
from pyro_mdm.posteriors.reading import sites_of
from pyro_mdm.support.checks import describe
from pyro_mdm.support.files import read_json


def simulator_named(
    name: str, latent: list[str] | None, observed: list[str] | None, *, vectorized: bool
) -> Simulator:
    """The simulator that ``--simulator`` names, with the sites and the plate that are asked for.

    Raises:
        NameNotFoundError, UntrustedCodeError: see :func:`~inference.settings.names.find`.
        TypeError: it is no program.
        ValueError: a program without ``latent`` or ``observed``.
    """
    named = find("simulator", name)
    if isinstance(named, Simulator):
        return named._replace(
            latent=named.latent if latent is None else tuple(latent),
            observed=named.observed if observed is None else tuple(observed),
            vectorized=vectorized or named.vectorized,
        )
    if not callable(named):
        raise TypeError(
            f"--simulator {name} is {named!r}, expected a Pyro program without arguments, or a "
            "Simulator of inference.simulators"
        )
    if latent is None or observed is None:
        raise ValueError(
            f"--simulator {name} is a program of your own, expected --latent and --observed for "
            "its parameters and its data; name their sites, e.g. --latent [theta] --observed [x]"
        )
    return Simulator(named, tuple(latent), tuple(observed), vectorized=vectorized)


def read_observation(path: Path, simulator: Simulator) -> dict[str, Tensor]:
    """An observation by site, (*shape) each, and those true parameters that the file has.

    Args:
        path: a .json of lists by site, or a .csv with a column for each site, whose numbers stand
            below each other.

    Raises:
        RunError: no such file, or one of another kind; a site that is missing, has another number
            of values, or values that are no numbers.
    """
    shapes = {
        name: tuple(site["value"].shape)
        for name, site in sites_of(
            simulator.program, [*simulator.observed, *simulator.latent]
        ).items()
    }
    content = content_of(path)
    if absent := [name for name in simulator.observed if name not in content]:
        raise RunError(
            f"--data {path} has no {absent[0]!r}, expected the sites of the data, "
            f"{', '.join(simulator.observed)}; it has {', '.join(map(str, content)) or 'nothing'}"
        )
    values = {}
    for name, shape in shapes.items():
        if name not in content:
            continue
        entries, size = content[name], math.prod(shape)
        if path.suffix == ".csv" and not any(cell not in (None, "") for cell in entries[size:]):
            entries = entries[:size]  # shorter columns end in empty cells
        try:
            value = numbers_of(entries)
        except (TypeError, ValueError) as error:
            raise RunError(
                f"--data {path}: {name!r} has a value that is no number ({error}), expected "
                "finite numbers, and nothing where one is missing"
            ) from error
        if value.numel() != size:
            raise RunError(
                f"--data {path}: {name!r} has {value.numel()} values, expected {size}, of shape "
                f"{shape}; one observation has the shape that the program draws"
            )
        values[name] = value.reshape(shape)
    return values


def content_of(path: Path) -> dict[str, Any]:
    """What a .json or a .csv has by name, the cells of a column in their order.

    Raises:
        RunError: no such file, a damaged one, or one of another kind.
    """
    try:
        if path.suffix == ".json":
            content = read_json(path)
        elif path.suffix == ".csv":
            names, *rows = rows_of(path)
            columns = zip(names, *rows, strict=True)
            content = {name.strip(): [cell.lstrip() for cell in cells] for name, *cells in columns}
        else:
            raise RunError(f"--data is {path}, expected a .json or a .csv file")
    except OSError as error:
        raise RunError(f"--data {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, DataError) as error:
        raise RunError(f"--data {path} is damaged ({error}), expected values by site") from error
    if not isinstance(content, dict):
        raise RunError(f"--data {path} holds {describe(content)}, expected values by site")
    return content


def numbers_of(entries: object) -> Tensor:
    """Nested lists of numbers as a tensor of the default type, NaN for what is missing.

    Raises:
        TypeError, ValueError: something else, or a number that is infinite there.
    """
    values = torch.tensor(_floats(entries), dtype=torch.get_default_dtype())
    if values.isinf().any():
        raise ValueError(f"one is infinite, or beyond {values.dtype}")
    return values


def _floats(value: object) -> Any:
    if isinstance(value, list):
        return [_floats(one) for one in value]
    missing = value is None or (isinstance(value, str) and not value.strip())
    if missing:
        return math.nan
    if not isinstance(value, int | float | str):
        raise TypeError(f"it is {describe(value)}")
    return float(value)


def is_incomplete(values: Mapping[str, Tensor]) -> bool:
    """Whether a number is missing, that is NaN."""
    return any(bool(value.isnan().any()) for value in values.values())
