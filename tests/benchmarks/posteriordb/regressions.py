"""Linear regressions: kidiq, earnings, mesquite, nes, blr, kilpisjarvi and diamonds."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.benchmarks.posteriordb.base import Data, Posterior, Program, flat, flat_scale

__all__ = ["POSTERIORS"]

Columns = Callable[[Data], list[Tensor]]
"""A function of the data that returns the columns of a regression, without the intercept."""


def regression(
    outcome: Callable[[Data], Tensor], columns: Columns, cauchy: bool = False
) -> Posterior:
    """Of flat coefficients, and a deviation that is flat or has a half-Cauchy prior."""

    def program(data: Data) -> Program:
        y, x = outcome(data), columns(data)
        X = torch.stack([torch.ones_like(y), *x], 1)
        scale = 2.5 * y.std() / torch.cat([X[:, :1].mean(0), X[:, 1:].std(0)])

        def run() -> None:
            beta = flat("beta", scale, (X.shape[1],))
            if cauchy:
                sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
            else:
                sigma = flat_scale("sigma", y.std())
            mean = beta @ X.mT
            pyro.sample("y", dist.Normal(mean, sigma.unsqueeze(-1)).to_event(1), obs=y)

        return run

    return Posterior(program)


def of(*names: str) -> Columns:
    """The columns of these names."""
    return lambda data: [data[name] for name in names]


def centred(x: Tensor) -> Tensor:
    return x - x.mean()


def product(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]) -> Columns:
    """A mother's school and IQ, changed, and their product."""

    def columns(data: Data) -> list[Tensor]:
        school, iq = one(data["mom_hs"]), other(data["mom_iq"])
        return [school, iq, school * iq]

    return columns


def is_one_of(name: str, *levels: int) -> Columns:
    """A column for each level, 1 where the data have it."""
    return lambda data: [(data[name] == level).double() for level in levels]


def kid_score(data: Data) -> Tensor:
    score: Tensor = data["kid_score"]
    return score


def log_earn(data: Data) -> Tensor:
    return torch.as_tensor(data["earn"]).log()


def log_weight(data: Data) -> Tensor:
    return torch.as_tensor(data["weight"]).log()


def halved(x: Tensor) -> Tensor:
    return centred(x) / (2 * x.std())


def bush(*names: str) -> Columns:
    """Logarithms of a bush's sizes; its group as it is."""

    def columns(data: Data) -> list[Tensor]:
        across = data["diam1"] * data["diam2"]
        sizes = {
            "volume": across * data["canopy_height"],
            "area": across,
            "shape": data["diam1"] / data["diam2"],
        }
        return [
            data["group"] if name == "group" else sizes.get(name, data.get(name)).log()
            for name in names
        ]

    return columns


def interaction(change: Callable[[Tensor], Tensor]) -> Columns:
    """Height, changed, sex and their product."""

    def columns(data: Data) -> list[Tensor]:
        height = change(data["height"])
        return [height, data["male"], height * data["male"]]

    return columns


def voter(data: Data) -> list[Tensor]:
    first, last = of("real_ideo", "race_adj"), of("educ1", "gender", "income")
    return [*first(data), *is_one_of("age_discrete", 2, 3, 4)(data), *last(data)]


def blr(data: Data) -> Program:
    X, y = data["X"], data["y"]

    def run() -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(X.shape[1]), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
        pyro.sample("y", dist.Normal(beta @ X.mT, sigma.unsqueeze(-1)).to_event(1), obs=y)

    return run


def kilpisjarvi(data: Data) -> Program:
    x, y = data["x"], data["y"]

    def run() -> None:
        alpha = pyro.sample("alpha", dist.Normal(data["pmualpha"], float(data["psalpha"])))
        beta = pyro.sample("beta", dist.Normal(data["pmubeta"], float(data["psbeta"])))
        sigma = flat_scale("sigma", y.std())
        mean = alpha.unsqueeze(-1) + beta.unsqueeze(-1) * x
        pyro.sample("y", dist.Normal(mean, sigma.unsqueeze(-1)).to_event(1), obs=y)

    return run


def diamonds(data: Data) -> Program:
    X, y = data["X"][:, 1:], data["Y"]
    X = X - X.mean(0)

    def run() -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(X.shape[1]), 1.0).to_event(1))
        intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
        sigma = flat_scale("sigma", y.std())
        pyro.factor("prior", dist.StudentT(3.0, 0.0, 10.0).log_prob(sigma))
        mean = intercept.unsqueeze(-1) + b @ X.mT
        pyro.sample("y", dist.Normal(mean, sigma.unsqueeze(-1)).to_event(1), obs=y)

    return run


identity: Callable[[Tensor], Tensor] = torch.clone
KIDS = {
    "kidiq-kidscore_momhs": regression(kid_score, of("mom_hs"), cauchy=True),
    "kidiq-kidscore_momiq": regression(kid_score, of("mom_iq"), cauchy=True),
    "kidiq-kidscore_momhsiq": regression(kid_score, of("mom_hs", "mom_iq"), cauchy=True),
    "kidiq-kidscore_interaction": regression(kid_score, product(identity, identity), cauchy=True),
    "kidiq_with_mom_work-kidscore_interaction_c": regression(kid_score, product(centred, centred)),
    "kidiq_with_mom_work-kidscore_interaction_c2": regression(
        kid_score, product(lambda hs: hs - 0.5, lambda iq: iq - 100)
    ),
    "kidiq_with_mom_work-kidscore_interaction_z": regression(kid_score, product(halved, halved)),
    "kidiq_with_mom_work-kidscore_mom_work": regression(kid_score, is_one_of("mom_work", 2, 3, 4)),
}
EARNINGS = {
    "earnings-earn_height": regression(lambda data: data["earn"], of("height")),
    "earnings-log10earn_height": regression(lambda data: data["earn"].log10(), of("height")),
    "earnings-logearn_height": regression(log_earn, of("height")),
    "earnings-logearn_height_male": regression(log_earn, of("height", "male")),
    "earnings-logearn_interaction": regression(log_earn, interaction(identity)),
    "earnings-logearn_interaction_z": regression(
        log_earn, interaction(lambda height: centred(height) / height.std())
    ),
    "earnings-logearn_logheight_male": regression(
        log_earn, lambda data: [data["height"].log(), data["male"]]
    ),
}
SIZES = ("diam1", "diam2", "canopy_height", "total_height", "density")
MESQUITE = {
    "mesquite-mesquite": regression(lambda data: data["weight"], of(*SIZES, "group")),
    "mesquite-logmesquite": regression(log_weight, bush(*SIZES, "group")),
    "mesquite-logmesquite_logvolume": regression(log_weight, bush("volume")),
    "mesquite-logmesquite_logva": regression(log_weight, bush("volume", "area", "group")),
    "mesquite-logmesquite_logvas": regression(
        log_weight, bush("volume", "area", "shape", "total_height", "density", "group")
    ),
    "mesquite-logmesquite_logvash": regression(
        log_weight, bush("volume", "area", "shape", "total_height", "group")
    ),
}
ELECTIONS = {
    f"nes{year}-nes": regression(lambda data: data["partyid7"], voter)
    for year in range(1972, 2001, 4)
}
POSTERIORS = {
    **KIDS,
    **EARNINGS,
    **MESQUITE,
    **ELECTIONS,
    "sblrc-blr": Posterior(blr),
    "sblri-blr": Posterior(blr),
    "kilpisjarvi_mod-kilpisjarvi": Posterior(kilpisjarvi),
    "diamonds-diamonds": Posterior(diamonds),
}
