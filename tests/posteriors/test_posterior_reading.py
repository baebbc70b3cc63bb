"""What programs say of their parameters and data, held to programs of which it is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_mdm.posteriors import log_prior, read_program, simulate
from pyro_mdm.posteriors.reading import check_data
from tests.mistakes import refused

Program = Callable[[], Any]


def normal(name: str, loc: Any = 0.0, scale: Any = 1.0) -> torch.Tensor:
    return pyro.sample(name, dist.Normal(loc, scale))


def factors(program: Program, observed: list[str], latent: tuple[str, ...] = ("a",)) -> list[Any]:
    """The factors of a program, as their sites and their plate."""
    read = read_program(program, latent, observed).factors
    return [([site.name for site in factor.sites], factor.plate) for factor in read]


# -- data that are exchangeable --------------------------------------------------------------------


def slcp() -> None:
    """Four points of a Gaussian, whose five parameters are the data's mean and covariance."""
    theta = pyro.sample("theta", dist.Uniform(-3.0 * torch.ones(5), 3.0).to_event(1))
    spread, r = theta[2:4].square() + 0.1, theta[4].tanh()
    root = torch.stack(
        [
            torch.stack([spread[0], torch.tensor(0.0)]),
            spread[1] * torch.stack([r, (1 - r * r).sqrt()]),
        ]
    )
    with pyro.plate("points", 4):
        pyro.sample("x", dist.MultivariateNormal(theta[:2], scale_tril=root))


def test_points_of_one_law_are_a_factor_by_plate() -> None:
    structure = read_program(slcp, ["theta"], ["x"])
    (site,), (factor,) = structure.data, structure.factors
    assert site.shape == (4, 2) and site.plates == (("points", 4, -2),) and not site.is_discrete
    assert factor == ((site,), "points") and factor.size == 4 and structure.notes == ()
    assert site.parameters == factor.parameters == ("theta",)
    (theta,) = structure.parameters
    assert theta[:2] == ("theta", (5,)) and theta.transform.inverse_shape((5,)) == (5,)
    draws = simulate(slcp, 3, seed=0)
    assert torch.equal(factor.data(draws), draws["x"])
    assert torch.equal(factor.data({"x": draws["x"][0]}), draws["x"][:1])


def hierarchical() -> None:
    """Two data for each place, that share a local latent; a third is on its own."""
    a, b = normal("a"), normal("b")
    with pyro.plate("groups", 5, dim=-1):
        z = normal("z", a, b.exp())
        coin = pyro.sample("coin", dist.Bernoulli(logits=z))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1) * torch.ones(3), 1.0).to_event(1))
        normal("y", z + coin)
        pyro.sample("k", dist.Poisson(b.exp()))
    normal("w", torch.stack([b, a]).expand(5, 2), 1.0)


def test_local_latents_are_integrated_out_and_data_of_a_place_are_together() -> None:
    structure = read_program(hierarchical, ["a", "b"], ["x", "w", "y", "k"])
    first, second = structure.factors
    assert [s.name for s in first.sites] == ["x", "y", "k"] and first.plate == "groups"
    assert [s.name for s in second.sites] == ["w"] and (second.plate, second.size) == (None, 1)
    assert [s.is_discrete for s in first.sites] == [False, False, True]
    assert [s.parameters for s in first.sites] == [("a", "b"), ("a", "b"), ("b",)]
    assert structure.notes == ()
    draws = simulate(hierarchical, 2, seed=0)
    by_place = first.data(draws)
    assert by_place.shape == (2, 5, 5) and torch.equal(by_place[..., 3], draws["y"])
    assert second.data(draws).shape == (2, 1, 10)


def nested(law: Callable[[torch.Tensor], torch.Tensor]) -> Program:
    """Places and times in each; x is drawn for all of these, y for places."""

    def program() -> None:
        a = normal("a")
        with pyro.plate("places", 3, dim=-2):
            z = law(a)
            normal("y", z, 1.0)
            with pyro.plate("times", 4, dim=-1):
                normal("x", z, 2.0)

    return program


def test_of_nested_plates_the_outermost_is_taken_that_holds() -> None:
    local = nested(lambda a: normal("z", a))
    assert factors(local, ["x", "y"]) == [(["x", "y"], "places")]
    (factor,) = read_program(local, ["a"], ["x", "y"]).factors
    draws = simulate(local, 2, seed=0)
    assert torch.equal(factor.data(draws)[1, 2, :4], draws["x"][1, 2])
    assert torch.equal(factor.data(draws)[1, 2, 4], draws["y"][1, 2, 0])
    heights = torch.arange(3.0).unsqueeze(-1)
    assert factors(nested(lambda a: a), ["x", "y"]) == [(["x", "y"], "places")]
    (factor,) = read_program(nested(lambda a: a + heights), ["a"], ["x"]).factors
    assert (factor.plate, factor.size) == ("times", 4)
    assert torch.equal(factor.data(draws), draws["x"].transpose(1, 2))

    def crossed() -> None:
        a = normal("a")
        places, times = pyro.plate("places", 3, dim=-2), pyro.plate("times", 4, dim=-1)
        with places:
            z = normal("z", a)
        with places, times:
            normal("x", z + 0 * a)
        with times:
            normal("y", a)

    assert factors(crossed, ["x", "y"]) == [(["x"], "places"), (["y"], "times")]


def test_computed_data_in_a_plate_are_looked_at() -> None:
    """By their values, whichever dimension of them is said to be that of the plate."""

    def moons(event_dim: int | None, shift: float) -> Program:
        def program() -> None:
            a = normal("a")
            with pyro.plate("p", 4):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                x = a + z + shift * torch.arange(4.0).unsqueeze(-1)
                pyro.deterministic("x", x, event_dim=event_dim)

        return program

    for event_dim in (None, 1):
        assert factors(moons(event_dim, 0.0), ["x"]) == [(["x"], "p")]
        assert factors(moons(event_dim, 1e-3), ["x"]) == [(["x"], None)]


# -- data that are not -----------------------------------------------------------------------------

COVARIATES = torch.linspace(-1, 1, 8)


def in_a_plate(law: Callable[..., Any], size: int = 8) -> Program:
    def program() -> None:
        a = normal("a")
        with pyro.plate("p", size):
            law(a)

    return program


NOT_EXCHANGEABLE: dict[str, Callable[[torch.Tensor], Any]] = {
    "covariates": lambda a: normal("x", a * COVARIATES),
    "covariate of a local": lambda a: normal("x", normal("z", a, 1 + 1e-2 * COVARIATES)),
    "neighbours": lambda a: normal("x", normal("z", a).roll(1)),
    "one pair": lambda a: normal("x", torch.cat([(z := normal("z", a))[:7], z[5:6]])),
    "centred": lambda a: pyro.deterministic("x", (z := normal("z", a)) - z.mean()),
    "by NumPy": lambda a: normal("x", torch.as_tensor(np.sort(normal("z", a).numpy()))),
    "hidden law": lambda a: pyro.sample(
        "x", dist.Normal(normal("z", a) + COVARIATES, 1.0).mask(False)
    ),
}


@pytest.mark.parametrize("law", NOT_EXCHANGEABLE.values(), ids=NOT_EXCHANGEABLE)
def test_places_of_other_laws_or_that_depend_on_each_other_are_one_datum(law: Any) -> None:
    structure = read_program(in_a_plate(law), ["a"], ["x"])
    assert [factor.plate for factor in structure.factors] == [None]
    assert structure.data[0].parameters == ("a",) and structure.data[0].plates == (("p", 8, -1),)
    (note,) = structure.notes
    assert "are not exchangeable given the parameters: the distribution of" in note


def computed_by_numpy(a: torch.Tensor) -> None:
    x = np.random.default_rng(int(torch.randint(2**31, ()))).normal(float(a), 1.0, 8)
    pyro.deterministic("x", torch.as_tensor(x, dtype=torch.float32))


OPAQUE: dict[str, Callable[[torch.Tensor], Any]] = {
    "unseen": lambda a: normal("x", a + torch.randn(())),
    "NumPy": computed_by_numpy,
    "torch": lambda a: pyro.deterministic("x", a + torch.randn(8)),
    "pairs": lambda a: pyro.deterministic("x", a + torch.randn(8, 2), event_dim=1),
    "delta": lambda a: pyro.sample("x", dist.Delta(a + torch.randn(8))),
    "delta and a draw": lambda a: pyro.sample("x", dist.Delta(normal("z", a) + torch.randn(8))),
}


@pytest.mark.parametrize("law", OPAQUE.values(), ids=OPAQUE)
def test_a_plate_whose_random_numbers_are_not_seen_is_one_datum_with_a_warning(law: Any) -> None:
    with pytest.warns(UserWarning, match=r"'x' in the plate 'p' are not seen.*exchangeable=\('p',"):
        structure = read_program(in_a_plate(law), ["a"], ["x"])
    assert [factor.plate for factor in structure.factors] == [None]
    assert structure.data[0].parameters == ("a",) and len(structure.notes) == 1
    structure = read_program(in_a_plate(law), ["a"], ["x"], exchangeable=["p"])
    (factor,) = structure.factors
    assert (factor.plate, factor.size, factor.parameters) == ("p", 8, ("a",))
    assert structure.notes == ()


SEEN: list[Callable[[torch.Tensor], Any]] = [
    lambda a: pyro.deterministic("x", a + normal("z", 0.0)),
    lambda a: pyro.sample("x", dist.Delta(a + normal("z", 0.0))),
]


@pytest.mark.parametrize("law", SEEN)
def test_what_is_computed_from_draws_needs_no_word(law: Any) -> None:
    (factor,) = read_program(in_a_plate(law), ["a"], ["x"]).factors
    assert factor.plate == "p"


def test_an_exchangeable_plate_leaves_other_data_apart() -> None:
    def program() -> None:
        a = normal("a")
        with pyro.plate("p", 8):
            pyro.deterministic("x", a + torch.randn(8))
            pyro.deterministic("x2", a + torch.randn(8))
        with pyro.plate("q", 3):
            normal("y", a)

    names = ["x", "x2", "y"]
    structure = read_program(program, ["a"], names, exchangeable=["p"])
    said = [([site.name for site in f.sites], f.plate) for f in structure.factors]
    assert said == [(["x", "x2"], "p"), (["y"], "q")]
    for plates, word in (
        (["r"], "'r', expected plates that data are in"),
        (["p", "p"], "each once"),
    ):
        with pytest.raises(ValueError, match=word):
            read_program(program, ["a"], names, exchangeable=plates)


def outside(use: Callable[[torch.Tensor], Any]) -> Program:
    """A nuisance outside of the plate."""

    def program() -> None:
        a = normal("a")
        z = pyro.sample("z", dist.Bernoulli(1e-6))
        with pyro.plate("p", 4):
            normal("x", a + use(z))

    return program


def written(z: torch.Tensor) -> torch.Tensor:
    shift = torch.zeros(4)
    shift[:] = z
    return shift


USES: list[Callable[[torch.Tensor], Any]] = [
    lambda z: z,
    lambda z: float(z),
    lambda z: 1.0 if z else 0.0,
    lambda z: torch.tensor([z, z, z, z]),
    lambda z: torch.from_numpy(z.numpy()),
    lambda z: sum(z.expand(3).tolist()),
    lambda z: torch.full((4,), z),
    written,
]


@pytest.mark.parametrize("use", USES)
def test_a_nuisance_outside_of_a_plate_joins_its_data(use: Any) -> None:
    """It is rare, so that only following values shows it, wherever they go."""
    structure = read_program(outside(use), ["a"], ["x"])
    assert [factor.plate for factor in structure.factors] == [None]
    assert "independent given the parameters, as 'z' is outside of it" in structure.notes[0]
    assert factors(outside(use), ["x"], ("a",)) == [(["x"], None)]


def test_what_is_computed_from_parameters_may_be_outside() -> None:
    def program() -> None:
        a = normal("a")
        double = pyro.deterministic("double", 2 * a)
        with pyro.plate("p", 4):
            pyro.sample("x", dist.Exponential(double.exp()))
            normal("y", float(double))  # which says what feeds y no more than that

    assert factors(program, ["x", "y"]) == [(["x", "y"], "p")]
    assert factors(program, ["x", "y"], ("a", "double")) == [(["x", "y"], "p")]


def test_data_that_depend_on_data_are_one_factor() -> None:
    def program() -> None:
        a = normal("a")
        with pyro.plate("p", 4):
            x = normal("x", a)
        normal("y", x.sum())

    assert factors(program, ["x", "y"]) == [(["x", "y"], None)]
    assert factors(program, ["x"]) == [(["x"], "p")]
    assert read_program(program, ["a"], ["y"]).data[0].parameters == ("a",)


def test_numbers_drawn_outside_of_pyro_join_data() -> None:
    def program(shared: float) -> Program:
        def run() -> None:
            a, b, u = normal("a"), normal("b"), shared * torch.randn(())
            normal("x", a + u)
            normal("y", b - u)

        return run

    assert factors(program(0.0), ["x", "y"], ("a", "b")) == [(["x"], None), (["y"], None)]
    structure = read_program(program(1.0), ["a", "b"], ["x", "y"])
    assert len(structure.factors) == 1 and "x, y are not seen to be" in structure.notes[0]
    assert [site.parameters for site in structure.data] == [("a", "b")] * 2  # it is not known


def test_parameters_that_cannot_be_followed_are_found_by_drawing_them_anew() -> None:
    def program() -> None:
        a, b = normal("a"), normal("b")
        stripped = getattr(a, "_t", a)  # as compiled code does
        with pyro.plate("p", 4):
            normal("x", stripped)
            normal("y", normal("z", stripped + b))
        pyro.deterministic("double", 2 * stripped)

    structure = read_program(program, ["a", "b"], ["x", "y", "double"])
    assert [site.parameters for site in structure.data] == [("a",), ("a", "b"), ("a",)]
    assert [(len(f.sites), f.plate) for f in structure.factors] == [(2, "p"), (1, None)]


def test_a_site_that_feeds_a_parameter_and_data_is_said() -> None:
    def program() -> None:
        plate = pyro.plate("p", 3)
        with plate:
            z = normal("z")
        a, _ = normal("a", z.sum()), normal("b")
        with plate:
            normal("x", a + z)
        normal("y", a)

    structure = read_program(program, ["a", "b"], ["x", "y"])
    assert [(len(f.sites), f.plate) for f in structure.factors] == [(2, None)]
    assert structure.notes[0].startswith("'z' feeds the parameter 'a' and data")
    assert structure.data[0].parameters == ("a", "b")
    assert factors(program, ["x", "y"], ("a", "z")) == [(["x"], None), (["y"], None)]


def test_a_program_that_cannot_be_followed_is_one_factor() -> None:
    def program() -> None:
        a = normal("a")
        if type(a) is not torch.Tensor:
            raise TypeError("no tensor")
        with pyro.plate("p", 4):
            normal("x", a)

    structure = read_program(program, ["a"], ["x"])
    assert [f.plate for f in structure.factors] == [None]
    assert structure.notes == ("the program cannot be followed (TypeError: no tensor)",)


# -- draws and mistakes ----------------------------------------------------------------------------


def walk(most: int) -> Program:
    """A walk of a random number of steps."""

    def program() -> None:
        a, step = normal("a"), 0
        while step < most and float(normal(f"step{step}", a)) < 0.5:
            step += 1
        normal("x", a)

    return program


def test_programs_that_change_are_refused_and_may_hide_what_does() -> None:
    def late() -> None:  # in a tenth of its runs
        a = normal("a")
        normal("x", a * torch.ones(2 + int(a > 1.3)))

    def less(runs: Iterator[int]) -> None:  # as few runs by chance are all alike
        a = normal("a")
        if next(runs) == 0:
            normal("z")
        normal("x", a)

    expected = "expected the same sites of the same shapes in every run; draw as many"
    refused(
        ValueError,
        *(
            (
                lambda ask=ask: ask(partial(less, itertools.count())),
                f"draws 'z' .* none, {expected}",
            )
            for ask in (lambda p: read_program(p, ["a"], ["x"]), lambda p: simulate(p, 20, seed=0))
        ),
        (lambda: simulate(late, 200, seed=0), r"draws 'x' of shape \(\d,\) and in another"),
        (lambda: simulate(walk(3), 100, seed=0), expected),
        (lambda: simulate(walk(9), 100, seed=1, progress=True), expected),
    )
    hidden = poutine.block(walk(3), expose=["a", "x"])
    assert factors(hidden, ["x"]) == [(["x"], None)]
    assert set(simulate(hidden, 100, seed=0)) == {"a", "x"}


def test_data_that_say_nothing_are_refused() -> None:
    x, shapes = torch.randn(20, 4, 2), {"x": (4, 2)}
    x[3:5, 1], x[9, 0, 0] = torch.nan, torch.inf
    refused(
        ValueError,
        (
            lambda: check_data({"x": x}, shapes),
            r"NaN in 3 of 20 .*first is number 3",
        ),
        (lambda: check_data({"x": torch.ones(20, 4, 2)}, shapes), "'x' is the same in all 20 sim"),
        (lambda: check_data({"x": x[:, 0]}, shapes), r"shape \(20, 2\), expected \(n, 4, 2\)"),
    )


def test_mistakes_are_named() -> None:
    def led() -> None:
        a = pyro.sample("a", dist.Uniform(1.0, 10.0))
        pyro.sample("b", dist.Uniform(0.0, a))
        pyro.sample("k", dist.Poisson(a))
        pyro.sample("x", dist.Normal(a, 1.0), obs=torch.tensor(0.3))

    refused(
        (ValueError, TypeError),
        (lambda: read_program(led, ["a", "b"], ["k"]), "the support of site 'b' depends on"),
        (lambda: read_program(led, ["a"], ["x"]), "site 'x' is observed in the program"),
        (lambda: read_program(led, ["k"], ["b"]), "site 'k' is discrete"),
        (lambda: read_program(led, ["a"], ["a", "k"]), r"\['a'\] are both latent and observed"),
        (lambda: read_program(led, ["a", "a"], ["k"]), r"'a' is named twice"),
        (lambda: read_program(led, ["a"], ["k", "k"]), r"'k' is named twice"),
        (lambda: read_program(led, ["a"], ["y"]), "no site 'y', expected one of a, b, k, x"),
        (lambda: read_program(led, [], ["k"]), "no site is named"),
        (lambda: log_prior(led, ["z"], {}), "no site 'z'"),
    )
    (site,) = read_program(led, ["a"], ["k"]).data
    assert site.is_discrete and site.parameters == ("a",) and site.plates == ()
