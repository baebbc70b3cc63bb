"""Simulations on workers, kept in a folder as they come, and draws from elsewhere."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mdm.posteriors import AmortizedLikelihood, read_draws, simulate
from tests.mistakes import refused

FEW: dict[str, Any] = {"steps": 2, "hidden": 8, "depth": 1, "form": "gaussian"}


def program() -> None:
    """Numbers of all generators."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("places", 2):
        pyro.sample("x", dist.Normal(a, 0.5))
    pyro.deterministic("others", torch.tensor([random.random(), np.random.rand()]))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# -- draws -----------------------------------------------------------------------------------------


def test_each_run_has_draws_of_its_own_whatever_the_batches(tmp_path: Path) -> None:
    """And the generators of the caller stay as they were."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    one = simulate(program, 7, seed=5, workers=1)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    many = simulate(program, 7, seed=5, batch_size=3, folder=tmp_path)
    assert equal(one, many) and one["x"].shape == (7, 2) and one["others"].shape == (7, 2)
    assert len(one["a"].unique()) == 7 == len(one["others"][:, 0].unique())
    more = simulate(program, 9, seed=5, workers=1, batch_size=2)
    assert equal({name: value[:7] for name, value in more.items()}, one)
    assert not torch.equal(simulate(program, 7, seed=6, workers=1)["a"], one["a"])


@pytest.mark.slow
@pytest.mark.other_processes
def test_draws_are_the_same_on_any_number_of_workers(tmp_path: Path) -> None:
    one = simulate(program, 6, seed=5, workers=1)
    two = simulate(program, 6, seed=5, workers=2, folder=tmp_path)
    assert equal(one, two)
    from joblib import parallel_config

    with parallel_config(backend="threading", n_jobs=3):
        threads = simulate(program, 6, seed=5, workers=3)
    assert equal(one, threads)


@pytest.mark.slow
@pytest.mark.other_processes
def test_a_cluster_of_dask_makes_the_same_draws(tmp_path: Path) -> None:
    """Two processes of a local cluster."""
    from joblib import parallel_config

    one = simulate(program, 6, seed=5, workers=1)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as c,
        distributed.Client(c),
        parallel_config(backend="dask"),
    ):
        assert equal(one, simulate(program, 6, seed=5, workers=-1, folder=tmp_path))


def test_runs_in_a_plate_are_kept_too(tmp_path: Path) -> None:
    def batched() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("places", 2):
            pyro.sample("x", dist.Normal(a, 0.5))

    options: dict[str, Any] = {"seed": 5, "vectorized": True, "batch_size": 3}
    one = simulate(batched, 7, workers=1, **options)
    assert one["a"].shape == (7,) and one["x"].shape == (7, 2)
    assert len(one["a"].unique()) == 7
    assert equal(one, simulate(batched, 7, folder=tmp_path, **options))
    assert equal(one, simulate(batched, 7, folder=tmp_path, vectorized=True))
    at = {"a": torch.linspace(-50, 50, 7)}
    there = simulate(batched, at=at, **options)
    assert torch.equal(there["a"], at["a"])
    assert bool(((there["x"] - at["a"].unsqueeze(1)).abs() < 5).all())


def test_runs_in_a_plate_are_at_vectors_outside_the_plates_of_a_program() -> None:
    def batched() -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("places", 3):
            b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a + b, 0.5).to_event(1))

    at = {"a": 50 * torch.randn(7, 2), "b": 50 * torch.randn(7, 3, 2)}
    there = simulate(batched, at=at, seed=5, vectorized=True)
    assert torch.equal(there["a"], at["a"]) and torch.equal(there["b"], at["b"])
    assert bool(((there["x"] - at["a"].unsqueeze(1) - at["b"]).abs() < 5).all())


def test_sites_that_share_memory_are_kept(tmp_path: Path) -> None:
    def copied() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.deterministic("copy", a)

    drawn = simulate(copied, 6, seed=0, vectorized=True, folder=tmp_path)
    assert torch.equal(drawn["copy"], drawn["a"])
    assert torch.equal(read_draws(tmp_path, ["copy"])["copy"], drawn["a"])


def test_the_program_runs_at_given_parameters() -> None:
    at = {"a": torch.linspace(-50, 50, 7)}
    there = simulate(program, at=at, seed=0)
    assert torch.equal(there["a"], at["a"]) and there["x"].shape == (7, 2)
    assert bool(((there["x"] - at["a"].unsqueeze(1)).abs() < 5).all())
    assert equal(there, simulate(program, at=at, seed=0, workers=1, batch_size=4))
    refused(
        ValueError,
        (lambda: simulate(program, 6, at=at), "at has 7 values of 'a', expected"),
        (lambda: simulate(program, at={"b": torch.zeros(2)}), "at has 'b', which the program does"),
    )


# -- folders ---------------------------------------------------------------------------------------


class Interrupted(BaseException):
    """A kill, as far as a process can have one and live."""


def test_a_folder_goes_on_where_it_was(tmp_path: Path) -> None:
    """After a kill at any run: only those of the batch under way are made again."""
    runs = []

    def counted() -> None:
        runs.append(1)
        if len(runs) == 8:
            raise Interrupted
        program()

    whole = simulate(program, 12, seed=5, workers=1)
    with pytest.raises(Interrupted):
        simulate(counted, 12, seed=5, folder=tmp_path, batch_size=3)
    assert len(list(tmp_path.glob("runs-*"))) == 2  # runs 0 to 5
    refused(ValueError, (lambda: read_draws(tmp_path, ["a"]), "has 6 of 12 runs, .* expected all"))
    again = simulate(counted, 12, folder=tmp_path, batch_size=2)
    assert equal(again, whole) and len(runs) == 8 + 1 + 6  # the first one is compared
    assert equal(simulate(counted, 12, folder=tmp_path), whole) and len(runs) == 16
    assert equal(read_draws(tmp_path, ["a", "x"]), {n: whole[n] for n in ("a", "x")})


def test_a_folder_of_other_draws_is_refused(tmp_path: Path) -> None:
    simulate(program, 4, seed=5, folder=tmp_path / "draws")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    damaged = tmp_path / "damaged"
    simulate(program, 4, seed=5, folder=damaged)
    next(damaged.glob("runs-*")).write_bytes(b"nothing")
    at = {"a": torch.zeros(4)}
    refused(
        ValueError,
        (lambda: simulate(program, 4, seed=6, folder=tmp_path / "draws"), "seed = 5, expected 6"),
        (lambda: simulate(program, at=at, folder=tmp_path / "draws"), "at = None, expected"),
        (lambda: simulate(program, 4, folder=tmp_path / "other"), r"other files \(notes.txt\)"),
        (lambda: simulate(program, 4, folder=damaged), "is damaged, .* runs are made anew"),
    )


# -- runs that fail --------------------------------------------------------------------------------


def failing() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    if float(a) > 1.0:
        raise ArithmeticError("no convergence")
    pyro.sample("x", dist.Delta(a.log() if float(a) < -1.0 else a, validate_args=False))


def test_runs_that_fail_are_counted_named_and_left_out(tmp_path: Path) -> None:
    prior = lambda: pyro.sample("a", dist.Normal(0.0, 1.0))  # noqa: E731
    all_of_a = simulate(prior, 120, seed=2, workers=1)["a"]
    high, low = (all_of_a > 1.0), (all_of_a < -1.0)
    assert bool(high.any()) and bool(low.any())
    first = int(high.nonzero()[0])
    with pytest.warns(UserWarning) as said:
        drawn = simulate(failing, 120, seed=2, leave_out=True, folder=tmp_path)
    text = str(said[0].message)
    assert f"{int((high | low).sum())} of 120 runs of the program are left out" in text
    assert f"{int(high.sum())} by ArithmeticError: no convergence (run" in text
    assert f"{int(low.sum())} by NaN or infinite numbers of 'x' (run" in text
    assert str(first) in text
    assert torch.equal(drawn["a"], all_of_a[~(high | low)])
    with pytest.warns(UserWarning, match="of 120 runs"):  # of the folder, which knows them
        again = simulate(failing, 120, leave_out=True, folder=tmp_path)
    assert equal(again, drawn)
    refused(
        RuntimeError,
        (
            lambda: simulate(failing, 120, seed=2, workers=1),
            rf"run {first} of the program failed \(ArithmeticError: no convergence\)",
        ),
    )


def never() -> None:
    raise ValueError("no")


@pytest.mark.filterwarnings("ignore:.*runs of the program are left out")
def test_all_runs_that_fail_are_an_error() -> None:
    refused(RuntimeError, (lambda: simulate(never, 3, leave_out=True), "all 3 runs .*Error: no"))


def test_runs_of_other_shapes_are_refused() -> None:
    sizes = iter([2, 2, 3, 2, 2])

    def changing() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(next(sizes)), 1.0).to_event(1))

    refused(
        ValueError,
        (lambda: simulate(changing, 3, workers=1, batch_size=3), "another run|in another run"),
    )


def test_fits_simulate_on_workers_and_leave_out_what_failed(tmp_path: Path) -> None:
    def noisy() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        if float(a) > 1.5:
            raise ArithmeticError("no convergence")
        pyro.sample("x", dist.Normal(a, 1.0))

    options: dict[str, Any] = {"simulations": 60, "leave_out": True, "folder": tmp_path}
    with pytest.warns(UserWarning, match="of 60 runs of the program are left out"):
        likelihood = AmortizedLikelihood.fit(noisy, ["a"], ["x"], **options, **FEW)
    a = likelihood.simulations["a"]
    assert 40 < len(a) < 60 and float(a.max()) <= 1.5
    again = AmortizedLikelihood.fit(noisy, ["a"], ["x"], draws=tmp_path, **FEW)
    assert torch.equal(again.simulations["a"].sort()[0], a.sort()[0])
    gaps = {"a": torch.randn(60), "x": torch.randn(60)}
    gaps["x"][7] = math.nan
    with pytest.warns(UserWarning, match=r"1 of 60 runs .*'x' \(run 7\)"):
        some = AmortizedLikelihood.fit(
            program_of_a, ["a"], ["x"], draws=gaps, leave_out=True, **FEW
        )
    assert len(some.simulations["x"]) == 59
    refused(
        ValueError,
        (
            lambda: AmortizedLikelihood.fit(program_of_a, ["a"], ["x"], draws=gaps, **FEW),
            "infinite or NaN in 1 of 60",
        ),
    )


def program_of_a() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a, 1.0))


# -- draws from elsewhere --------------------------------------------------------------------------


def test_only_folders_of_simulate_are_read(tmp_path: Path) -> None:
    simulate(program, 4, seed=5, folder=tmp_path / "draws")
    (tmp_path / "draws.csv").write_text("a\n1\n")
    (tmp_path / "empty").mkdir()
    refused(
        (ValueError, FileNotFoundError),
        (lambda: read_draws(tmp_path / "draws", ["b"]), "no site 'b', expected it among"),
        (lambda: read_draws(tmp_path / "draws.csv", ["a"]), "no folder that simulate wrote"),
        (lambda: read_draws(tmp_path / "empty", ["a"]), "no folder that simulate wrote"),
        (lambda: read_draws(tmp_path / "none", ["a"]), "there are no draws at"),
    )
