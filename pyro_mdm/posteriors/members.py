r"""Several likelihoods of one simulator, whose spread is the error of learning.

Each member is learned from a random half of n simulations. If the variance of a learned quantity is
proportional to 1 / (number of simulations), the variance among halves of n fixed simulations is
that of a quantity learned from all n: 1/(n/2) − 1/n = 1/n. The mean of M members has this variance
and 1/M of it more. So the error of learning is √(1 + 1/M) times the standard deviation among
members (half-sampling: McCarthy, "Pseudo-replication: half samples", Review of the International
Statistical Institute 1969). It does not include errors that all members share, such as that of the
form of their distributions: the log evidence of N data is too low by N times their misfit, of which
:meth:`LikelihoodMembers.misfit` is what held-out simulations show.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pyro_mdm.budgets import Budget
from pyro_mdm.posteriors.laws import DataBounds, Form
from pyro_mdm.posteriors.likelihood import USUAL, AmortizedLikelihood
from pyro_mdm.posteriors.reading import Draws, Names, Plates
from pyro_mdm.posteriors.site import LearnedLikelihood
from pyro_mdm.posteriors.training import LearningOptions, to_learn_from
from pyro_mdm.support.checks import Several, check_count, checked_arguments
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.progress import progress_bar

__all__ = ["LearnedEvidence", "LikelihoodMembers", "MemberDraws"]

FILE, KIND = "members.safetensors", "likelihoods of members"
"""The file of the members in their folder, and its kind in words."""

OF_TRAINING = {"steps", "batch_size", "learning_rate", "progress"}
"""The options that each member is trained with."""

FEW = 4
"""The number of members by default. Training takes as long as of two likelihoods by all
simulations, and Student's factor of the error is 1.6, that of two members 6.5."""


class LearnedEvidence(NamedTuple):
    """The log evidence under learned likelihoods, nats, with its errors.

    Members are few, so the error of learning has a large factor by Student's t: 6.5 for two, 2.2
    for three and 1.6 for four.
    """

    mean: float  # the mean of the members' log evidences, nats
    monte_carlo: float  # its Monte Carlo error, nats
    learning: float  # its error by the spread among members, which includes that of draws, nats
    members: int = FEW  # their number
    misfit: float = 0.0  # how much too low it is by the form of the likelihoods, nats

    @classmethod
    def from_members(cls, members: Sequence[Measured], misfit: float = 0.0) -> LearnedEvidence:
        """The log evidence from those of two or more members.

        Args:
            members: the log evidence of each member, with its Monte Carlo error, nats.
            misfit: how much too low it is by their form, nats (:meth:`LikelihoodMembers.misfit`).
        """
        values = torch.tensor([member.mean for member in members], dtype=torch.float64)
        M = len(members)
        of_draws = math.hypot(*(member.standard_error for member in members)) / M
        mean, error = Measured.from_values(values)
        return cls(mean, of_draws, error * math.sqrt(M + 1), M, misfit)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval by the larger error, as that of learning includes both, with the misfit
        on its upper side."""
        low, high = Measured(self.mean, max(self.monte_carlo, self.learning)).interval
        return low, high + self.misfit

    def __str__(self) -> str:
        digits = Measured(self.mean, self.monte_carlo), Measured(self.mean, self.learning)
        both = [str(one).partition(" ± ")[2] or "unknown" for one in digits]
        finest = max((str(one).partition(" ± ")[0] for one in digits), key=len)
        said = f"log evidence {finest} ± {both[0]} (Monte Carlo) ± {both[1]} (learning)"
        if self.misfit:
            said += f" + up to {self.misfit:.2g} (misfit, by a richer form on held-out simulations)"
        return said


class MemberDraws(NamedTuple):
    """Draws of the members' posteriors, an equal number of each, with the evidence."""

    draws: Draws  # (n, *shape) by site
    log_evidence: LearnedEvidence


class LikelihoodMembers(LearnedLikelihood):
    """Likelihoods of one simulator, each learned from a random half of the simulations.

    Together they are one likelihood, the mean of the members' densities of a simulation
    (:meth:`given`). Their spread is the error of learning (:meth:`evidence`).

    Args:
        members: the likelihoods, two or more, of the same sites.

    Raises:
        ValueError: fewer than two members; members of different sites.
    """

    @checked_arguments
    def __init__(self, members: Sequence[AmortizedLikelihood]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(
                f"there are {len(members)} members, expected two or more, whose spread is the error"
            )
        sites = [(member.latent, member.observed) for member in members]
        if odd := [pair for pair in sites if pair != sites[0]]:
            raise ValueError(
                f"a member is of the sites {odd[0]} and the first of {sites[0]}, expected the same"
            )
        self.members = nn.ModuleList(members)
        self.structure, self.domain = members[0].structure, members[0].domain

    @classmethod
    @checked_arguments
    def fit(
        cls,
        program: Callable[..., object],
        latent: Sequence[str],
        observed: Sequence[str],
        *,
        members: Several = FEW,
        hidden: int = 64,
        depth: int = 3,
        form: Form | None = None,
        exchangeable: Sequence[str] = (),
        **learning: Unpack[LearningOptions],
    ) -> LikelihoodMembers:
        """Members trained on random halves of simulations.

        Args:
            program, latent, observed, hidden, depth, form, exchangeable: as for
                :meth:`AmortizedLikelihood.fit`.
            members: the number of members. Training takes as long as half of them would by all
                simulations. Two make the error of learning four times as large as four do.
            learning: as for the same; ``seconds`` are those of all members.

        Raises:
            FloatingPointError, TypeError, ValueError: as for :meth:`AmortizedLikelihood.fit`.
        """
        names, fitted = [*latent, *observed], list[AmortizedLikelihood]()
        budget = Budget(learning.get("seconds"), trainings=members)
        with to_learn_from(program, names, learning, USUAL) as (draws, _):
            n = len(draws[names[0]])
            halves = [torch.randperm(n)[: max(2, n // 2)] for _ in range(members)]
        of_training: Any = {k: v for k, v in learning.items() if k in OF_TRAINING}
        of_training |= {"hidden": hidden, "depth": depth, "form": form}
        of_training["exchangeable"] = exchangeable
        for place, rows in enumerate(halves):
            of_training["draws"] = {name: draws[name][rows] for name in names}
            of_training |= {"seconds": budget.next(), "seed": learning.get("seed", 0) + place}
            fitted.append(AmortizedLikelihood.fit(program, latent, observed, **of_training))
        return cls(fitted)

    @checked_arguments
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the members to ``members.safetensors`` in a folder, which is made if there is none.

        Args:
            folder: the folder.
        """
        AmortizedLikelihood.save_all(Path(folder) / FILE, KIND, list(self))

    @classmethod
    @checked_arguments
    def from_pretrained(
        cls, folder: str | os.PathLike[str], program: Callable[..., object] | None = None
    ) -> LikelihoodMembers:
        """The members that :meth:`save_pretrained` wrote; arguments and errors as for
        :meth:`AmortizedLikelihood.from_pretrained`."""
        return cls(AmortizedLikelihood.open_all(Path(folder) / FILE, KIND, program))

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[AmortizedLikelihood]:
        return iter(self.members)  # type: ignore[arg-type]

    def bounds(self) -> list[DataBounds]:
        return next(iter(self)).bounds()

    @checked_arguments
    def outside(self, theta: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([member.outside(theta) for member in self]).all(0)

    @checked_arguments
    def log_prob(
        self, data: Mapping[str, Tensor], theta: Mapping[str, Tensor], *, sites: Names = None
    ) -> Tensor:
        log_p = torch.stack([m.log_prob(data, theta, sites=sites) for m in self])
        return log_p.logsumexp(0) - math.log(len(self.members))

    def drawn(self, theta: Mapping[str, Tensor], plates: Plates, sites: Names) -> Draws:
        by_member = [member.drawn(theta, plates, sites) for member in self]
        n = max(map(len, by_member[0].values()))
        which, rows = torch.randint(len(by_member), (n,)), torch.arange(n)
        return {
            name: torch.stack([drawn[name] for drawn in by_member])[which, rows]
            for name in by_member[0]
        }

    def misfit(self, data: Mapping[str, Tensor], sites: Names = None) -> float:
        return sum(member.misfit(data, sites) for member in self) / len(self)

    @checked_arguments
    def evidence(
        self,
        estimate: Callable[[AmortizedLikelihood], Measured],
        data: Mapping[str, Tensor],
        *,
        progress: bool = False,
    ) -> LearnedEvidence:
        """The log evidence of any program with a learned likelihood, with its errors.

        Args:
            estimate: the function that takes a likelihood and returns the log evidence of the
                program with it, and its Monte Carlo error, nats, such as ``log_evidence`` of
                ``AutoMDM.importance``.
            data: all data that the program observes, (units, *shape) by site of the simulator, NaN
                where one is missing, whose number the misfit grows with.
            progress: whether to show a progress bar.
        """
        with progress_bar(len(self), "evidence", "members", shown=progress) as bar:
            evidences = list[Measured]()
            for member in self:
                evidences.append(estimate(member))
                bar.update()
        return LearnedEvidence.from_members(evidences, self.misfit(data))

    @checked_arguments
    def posterior(
        self,
        data: Mapping[str, Tensor],
        n: int = 10_000,
        *,
        given: Mapping[str, Tensor] | None = None,
        particles: int | None = None,
        moves: float = 5.0,
        seed: int = 0,
    ) -> MemberDraws:
        """Draws of p(θ | x) for one datum, an equal number by each member, with the evidence;
        arguments and errors as for :meth:`AmortizedLikelihood.posterior`."""
        check_count("n", n, "the number of draws", len(self))
        share = -(-n // len(self))
        options: Any = {"given": given, "particles": particles, "moves": moves}
        posteriors = [
            member.posterior(data, share, seed=seed + place, **options)
            for place, member in enumerate(self)
        ]
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(share * len(self), generator=generator)[:n]
        names = posteriors[0].draws
        draws = {name: torch.cat([one.draws[name] for one in posteriors])[order] for name in names}
        evidences = [one.log_evidence for one in posteriors]
        return MemberDraws(draws, LearnedEvidence.from_members(evidences, self.misfit(data)))
