"""Many units of a simulator: a hierarchical program around a likelihood that is learned."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import Predictive
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from inference.folders.output import aligned
from inference.folders.runs import RunError
from inference.posteriors.files import Files
from inference.posteriors.observations import content_of, numbers_of
from inference.posteriors.report import quantile_rows
from inference.settings.names import find
from pyro_mdm.automatic import AutoMDM
from pyro_mdm.posteriors import AmortizedLikelihood, LikelihoodMembers
from pyro_mdm.posteriors.members import LearnedEvidence
from pyro_mdm.posteriors.site import LearnedLikelihood
from pyro_mdm.support.measured import Measured

Hierarchy = Callable[..., Any]
"""A Pyro program of a likelihood and of the units' data by site."""

UNIT = "unit"
"""The column of a .csv file that names the units."""

WEIGHTS = 2000
"""Draws that are weighted for the evidence by each likelihood."""

UPDATES = (0, 300)
"""Numbers of updates of a guide: an annealed chain is mostly enough, and is trained if not."""

REPLICATED = 200
"""Draws whose data are simulated again for the picture, and draws of the prior in it."""


def hierarchy_named(name: str) -> Hierarchy:
    """The hierarchical program that ``--hierarchy`` names.

    Raises:
        NameNotFoundError, UntrustedCodeError: see :func:`~inference.settings.names.find`.
        TypeError: it is no program.
    """
    named = find("hierarchy", name)
    if not callable(named):
        raise TypeError(
            f"--hierarchy {name} is {named!r}, expected a Pyro program of two arguments, the "
            "learned likelihood and the data of the units by site"
        )
    return named


def read_units(path: Path | None, observed: tuple[str, ...]) -> dict[str, Tensor]:
    """The data of all units by site, (units, *shape) each, filled up with NaN.

    Args:
        path: a .json of lists by site, with an entry for each unit; or a .csv with a row for each
            datum, the column ``unit``, and a column for each site. None is refused.
        observed: the names of the data's sites.

    Raises:
        RunError: no file, or one of another kind; a column or site that is missing; values
            that are no numbers; sites with different numbers of units.
    """
    if path is None:
        raise RunError("--hierarchy has no --data, expected the file of the units' data")
    content = content_of(path)
    wanted = [*([UNIT] if path.suffix == ".csv" else []), *observed]
    if absent := [name for name in wanted if name not in content]:
        raise RunError(
            f"--data {path} has no {absent[0]!r}, expected {', '.join(wanted)}, with the data of "
            f"all units; it has {', '.join(map(str, content)) or 'nothing'}"
        )
    values = {}
    for name in observed:
        entries = content[name]
        if path.suffix == ".csv":
            by_unit = dict[str, list[Any]]()
            for unit, entry in zip(content[UNIT], entries, strict=True):
                by_unit.setdefault(unit, []).append(entry)
            entries = list(by_unit.values())
        try:
            rows = [numbers_of(row) for row in entries]
            values[name] = (
                pad_sequence(rows, batch_first=True, padding_value=torch.nan)
                if rows[0].ndim
                else torch.stack(rows)
            )
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise RunError(
                f"--data {path}: the entries of {name!r} are no numbers of units ({error}), "
                "expected a list of numbers for each unit, with null where one is missing"
            ) from error
    counts = {name: len(value) for name, value in values.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name!r} of {n}" for name, n in counts.items())
        raise RunError(f"--data {path} has {said} units, expected all sites of the same units")
    return values


class HierarchyReport:
    """The posterior of a hierarchical program by each of several learned likelihoods.

    Args:
        members: the likelihoods.
        hierarchy: the program of a likelihood and of the data.
        data: the data of the units by site, (units, *shape).
        num_samples: the number of draws of the posterior.
        seed: the seed of guides and draws.
    """

    def __init__(
        self,
        members: LikelihoodMembers,
        hierarchy: Hierarchy,
        data: Mapping[str, Tensor],
        num_samples: int,
        seed: int,
    ) -> None:
        self.members, self.hierarchy, self.data = members, hierarchy, data
        self.seed, self.doubts = seed, list[str]()
        self._n = -(-num_samples // len(members))
        by_member = list[dict[str, Tensor]]()
        self.log_evidence: LearnedEvidence = members.evidence(
            functools.partial(self._fitted, by_member), data, progress=True
        )
        self.drawn = {
            name: torch.cat([draws[name] for draws in by_member])[:num_samples]
            for name in by_member[0]
        }

    def _fitted(
        self, by_member: list[dict[str, Tensor]], likelihood: AmortizedLikelihood
    ) -> Measured:
        """The log evidence by one likelihood; its draws are added to a list."""
        with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
            torch.manual_seed(self.seed + len(by_member))
            guide = AutoMDM(self.program(likelihood))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they say is printed
                for updates in UPDATES:
                    guide.fit(updates=updates, progress=False)
                    weights = guide.importance(WEIGHTS)
                    if not weights.doubt:
                        break
                by_member.append(guide.sample_posterior(self._n, resample=True))
        if weights.doubt:
            self.doubts.append(weights.doubt)
        return weights.log_evidence

    def program(self, likelihood: LearnedLikelihood) -> Callable[[], Any]:
        """The hierarchical program with a likelihood and the data, without arguments."""
        return functools.partial(self.hierarchy, likelihood, self.data)

    def words(self) -> str:
        """Draws of the posterior by parameter, and the log evidence with its errors."""
        units = len(next(iter(self.data.values())))
        said = f"{aligned(quantile_rows(self.drawn))}\n{units} units: {self.log_evidence}, nats"
        if self.doubts:
            said += (
                f"; by {len(self.doubts)} of {len(self.members)} likelihoods NOT to be trusted, as "
                f"{self.doubts[0]}; fit the program by AutoMDM, whose check() names a remedy"
            )
        names = [site.name for site in self.members.structure.parameters]
        if all(name in self.drawn for name in names):
            outside = self.members.fraction_outside({name: self.drawn[name] for name in names})
            said += f"\nparameters of units unlike all that were simulated: {outside:.1%} of draws"
        return said

    def write(self, files: Files) -> None:
        """Print the posterior and the evidence, and write draws and pictures."""
        print(self.words())
        drawings = self.drawn, self.prior, None, self.replicated, self.observed
        files.draw(*drawings, with_draws=True)

    @functools.cached_property
    def observed(self) -> dict[str, Tensor]:
        """The data by site of the hierarchical program, (*shape)."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            nodes = pyro.poutine.trace(self.program(self.members)).get_trace().nodes
        return {
            name: torch.as_tensor(node["value"])
            for name, node in nodes.items()
            if node["type"] == "sample" and node["is_observed"] and not site_is_subsample(node)
        }

    @functools.cached_property
    def prior(self) -> dict[str, Tensor]:
        """Draws of the prior by site, (n, *shape), of parameters and data."""
        return self._predicted({})

    @functools.cached_property
    def replicated(self) -> dict[str, Tensor]:
        """Data by site, (n, *shape), of the same units, simulated with draws of the posterior."""
        few = {name: value[:REPLICATED] for name, value in self.drawn.items()}
        return {name: self._predicted(few)[name] for name in self.observed}

    def _predicted(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        program = pyro.poutine.uncondition(self.program(self.members))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            drawn = Predictive(program, draws, num_samples=None if draws else REPLICATED)()
        shapes = {name: value.shape for name, value in self.observed.items()}
        shapes |= {name: value.shape[1:] for name, value in self.drawn.items()}
        return {
            name: value.reshape(-1, *shapes[name])
            for name, value in drawn.items()
            if name in shapes
        }
