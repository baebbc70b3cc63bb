"""Posteriors as Pyro programs, and what a folder of posteriordb holds of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["Data", "Flat", "Folder", "Posterior", "Program", "Sites", "flat", "flat_scale"]

Data = Mapping[str, Any]
Program = Callable[[], None]
Sites = dict[str, Tensor]


def as_sites(draws: Sites, data: Data) -> Sites:
    """The draws of a program whose sites are the parameters of the Stan program."""
    return draws


@dataclass(frozen=True)
class Posterior:
    """A Pyro program of data, and its latents from the parameters of the Stan program.

    Programs broadcast over a plate at their left.

    Args:
        program: function of the data that returns the program.
        sites: function of the reference draws by parameter, (n, *shape) each, and of the data,
            that returns the values of the program's sites.
    """

    program: Callable[[Data], Program]
    sites: Callable[[Sites, Data], Sites] = as_sites


class Folder:
    """The folder ``posterior_database`` of a checkout of posteriordb.

    Args:
        path: the folder, or the checkout that has it.
    """

    def __init__(self, path: Path) -> None:
        inner = path / "posterior_database"
        self.path = inner if inner.is_dir() else path
        if not (self.path / "posteriors").is_dir():
            raise SystemExit(
                f"{path} has no folder posteriors, expected a checkout of posteriordb; get one by "
                "git clone https://github.com/stan-dev/posteriordb, and pass --folder posteriordb"
            )

    def data(self, name: str) -> dict[str, Any]:
        """The data of a posterior: lists of numbers as float64 tensors."""
        about = json.loads((self.path / "posteriors" / f"{name}.json").read_text())
        values = _unzipped(self.path / "data" / "data" / f"{about['data_name']}.json.zip")
        return {
            key: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
            for key, value in values.items()
        }

    def draws(self, name: str) -> Sites:
        """Reference draws of all chains by parameter, (n, *shape) in float64."""
        folder = self.path / "reference_posteriors" / "draws" / "draws"
        chains = _unzipped(folder / f"{name}.json.zip")
        columns = {
            key: torch.cat([torch.tensor(chain[key]).double() for chain in chains])
            for key in chains[0]
        }
        parameters: dict[str, list[Tensor]] = {}
        for key, column in columns.items():  # beta[1], beta[2], …, in order
            parameters.setdefault(key.partition("[")[0], []).append(column)
        return {
            key: torch.stack(entries, 1) if f"{key}[1]" in columns else entries[0]
            for key, entries in parameters.items()
        }


def _unzipped(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


class Flat(TorchDistribution):
    """The improper distribution of density 1, from which fits are started by a proper one.

    Args:
        start: distribution of first values, with the support and the shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, start: Any) -> None:
        self.start = start
        super().__init__(start.batch_shape, start.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        return self.start.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        value: Tensor = self.start.sample(torch.Size(sample_shape))
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(self.start.log_prob(value))

    def expand(self, batch_shape: Any, _instance: object = None) -> Flat:
        return Flat(self.start.expand(batch_shape))


def flat(name: str, scale: Tensor | float, shape: tuple[int, ...] = ()) -> Tensor:
    """A real site of density 1.

    Args:
        name: its name.
        scale: deviation of first values.
        shape: its shape.
    """
    start = dist.Normal(torch.zeros(shape), torch.as_tensor(scale).expand(shape))
    value: Tensor = pyro.sample(name, Flat(start.to_event(len(shape))))
    return value


def flat_scale(name: str, size: Tensor | float) -> Tensor:
    """A positive site of density 1, whose first values are about ``size``."""
    value: Tensor = pyro.sample(name, Flat(dist.LogNormal(torch.as_tensor(size).log(), 0.5)))
    return value
