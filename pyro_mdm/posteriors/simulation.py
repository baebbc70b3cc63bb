r"""Draws of a simulator: in this process, or on many workers, kept in a folder as they come.

On workers each run has its own seed, computed from the seed of all runs and the number of the run.
So draws do not depend on the number of workers, on other runs, or on the run at which a folder was
resumed. Workers are those of joblib: processes of this machine, or with
``joblib.parallel_config(backend="dask")`` or ``"ray"`` those of a cluster.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from pyro_mdm.posteriors.dependence import seeded
from pyro_mdm.posteriors.reading import (
    Draws,
    Program,
    check_same,
    nodes_of,
    number_of,
    with_same_sites,
)
from pyro_mdm.posteriors.stored import Batch, Store
from pyro_mdm.support.checks import Count, check_count, checked_arguments
from pyro_mdm.support.files import installing
from pyro_mdm.support.progress import progress_bar
from pyro_mdm.support.traces import Site, is_subsample, sample_sites

__all__ = ["shuffled", "simulate", "warn_of_failures", "without_gaps"]

MOST_BATCHES = 1000
"""The most batches of runs by default; fewer runs have a batch each."""
IN_A_PLATE = 1000
"""The most runs of a batch that is drawn in a plate, by default."""
ROUNDING = 1e-5
"""The most difference of a run that is made again, for rounding, relative to its largest value."""
NAMED = 5
"""The most failed runs that a message names."""

_one_at_a_time = threading.Lock()  # Pyro's handlers and generators are global


def shuffled(draws: Draws) -> Draws:
    """The draws, (n, *shape) by site, in random order, so that the last ones, which validate, are
    like the others.
    """
    order = torch.randperm(number_of(draws, "draws", "give each site (n, *shape) values"))
    return {name: value[order] for name, value in draws.items()}


@checked_arguments
def simulate(
    program: Program,
    n: Count | None = None,
    *,
    at: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
    vectorized: bool = False,
    workers: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    batch_size: Count | None = None,
    leave_out: bool = False,
    progress: bool = False,
) -> Draws:
    """Draws of all sites of a program, including observed ones, (n, *shape) by site.

    With ``at``, ``workers``, ``folder`` or ``leave_out`` each run has its own seed. Then draws are
    the same for any number of workers, but differ from those without these options.

    Args:
        program: the simulator, without arguments, whose data are drawn, not observed.
        n: the number of draws; None: the number of values in ``at``.
        at: the values of sites at which the program runs, (n, *shape) by site; None: all sites are
            drawn.
        seed: the seed of the draws, with which the caller's random state is kept; None: the seed of
            the folder, or one by the global generator.
        vectorized: whether to run the program once in a plate of n (``Predictive(parallel=True)``),
            which is quicker than n times. The program must then not mix entries of its batch, which
            cannot be checked.
        workers: the number of workers of joblib, -1 for all; None: this process.
        folder: the folder that draws are kept in as they come. Another call resumes it; a kill
            loses only unfinished batches. None: memory.
        batch_size: the number of runs that a worker makes at a time, which are kept together; by
            default n / 1,000, rounded up, or in a plate 1,000, or all if they are fewer.
        leave_out: whether runs that fail, or have NaN or infinite numbers, are left out, with a
            warning that counts and names them. False: a run that fails is an error.
        progress: whether to show a progress bar.

    Raises:
        ImportError: workers without joblib.
        RuntimeError: a run on workers that fails; no run that is not left out.
        ValueError: sites or shapes that change from run to run; a folder of other draws, or of
            another program, whose first run is made again to see that.
    """
    if n is None:
        n = 0 if at is None else max(map(len, at.values()), default=0)
    check_count("n", n, "the number of simulations")
    apart = workers is not None or folder is not None or leave_out or at is not None
    if not apart:
        return _simulated(program, n, seed, vectorized, progress)
    given = {name: torch.as_tensor(value).detach() for name, value in (at or {}).items()}
    for name, value in given.items():
        if (count := len(value) if value.dim() else 0) != n:
            raise ValueError(
                f"at has {count} values of {name!r}, expected n = {n}; give each site (n, *shape) "
                "values"
            )
    default = min(n, IN_A_PLATE) if vectorized else -(-n // MOST_BATCHES)
    store = Store(folder, seed, batch_size or default, n if vectorized else None, given or None)
    plan = _Plan(program, store.seed, vectorized, leave_out)
    if store.first is not None:
        _check_program(plan, store.first, given)
    store.begin(n)
    _run_all(plan, store, n, given, workers, progress)
    whole = store.all(n)
    draws, failed = whole.values, dict(whole.failed)
    if leave_out:
        draws, gaps = without_gaps(draws)
        failed |= {int(whole.runs[i]): said for i, said in gaps.items()}
    warn_of_failures(failed, n, stacklevel=4)
    if not draws or len(next(iter(draws.values()))) == 0:
        first = next(iter(failed.values()), "none was made")
        raise RuntimeError(f"all {n} runs of the program failed ({first}), expected draws")
    if odd := [name for name in given if name not in draws]:
        raise ValueError(
            f"at has {odd[0]!r}, which the program does not draw, expected some of "
            f"{', '.join(draws)}; name its sites"
        )
    return draws


def _simulated(
    program: Program, n: int, seed: int | None, vectorized: bool, progress: bool
) -> Draws:
    """Draws by one stream of random numbers, in this process."""
    shown = progress and not vectorized
    nodes = nodes_of(program)
    checked = program if vectorized else with_same_sites(program, nodes)
    with progress_bar(n, "simulating", "runs", shown=shown) as bar:
        runs = itertools.count()

        def counted() -> object:
            value = checked()
            if next(runs) < n:  # Predictive runs the program once more, to list its sites
                bar.update()
            return value

        draws = Predictive(counted if shown else checked, num_samples=n, parallel=vectorized)
        with seeded(seed):
            drawn = draws()
    return _by_run(drawn, nodes, n)


def _by_run(draws: Draws, nodes: Mapping[str, Site], n: int) -> Draws:
    """The draws of n runs in a plate, with the shapes of the nodes of one run."""
    return {
        name: draws[name].detach().reshape(n, *site["value"].shape)
        for name, site in nodes.items()
        if name in draws
    }


# -- runs on workers -------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """The options of all workers."""

    program: Program
    seed: int
    vectorized: bool
    leave_out: bool


@contextmanager
def _seeded(*entropy: int) -> Iterator[None]:
    """A context with random numbers of torch, NumPy and Python by a seed; their states are kept."""
    positive = [number % 2**64 for number in entropy]  # torch has negative seeds, NumPy has none
    state = np.random.SeedSequence(positive).generate_state(4, np.uint64)
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state[0] >> np.uint64(1)))
            random.seed(int(state[1]))
            np.random.seed((state[2:] >> np.uint64(32)).astype(np.uint32))
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _run_batch(plan: _Plan, runs: Sequence[int], given: Draws) -> Batch:
    """The runs of a program with the given numbers, on a worker."""
    with _one_at_a_time:
        if plan.vectorized:
            return _run_in_plate(plan, runs, given)
        rows, done, failed = list[Draws](), list[int](), dict[int, str]()
        for place, run in enumerate(runs):
            program = poutine.condition(plan.program, {n: v[place] for n, v in given.items()})
            try:
                with _seeded(plan.seed, run, bool(given)), torch.no_grad():
                    trace = poutine.block(poutine.trace(program).get_trace)()
                sites = {n: s for n, s in sample_sites(trace).items() if not is_subsample(s)}
                rows.append({n: torch.as_tensor(s["value"]).detach() for n, s in sites.items()})
            except Exception as error:  # a program may raise any error
                failed[run] = _said(error)
                if not plan.leave_out:
                    break
            else:
                done.append(run)
        shapes = [{name: tuple(value.shape) for name, value in row.items()} for row in rows]
        for other in shapes:
            check_same(shapes[0], other)
        values = {name: torch.stack([row[name] for row in rows]) for name in (rows or [{}])[0]}
        return Batch(torch.tensor(done, dtype=torch.int64), values, failed)


def _said(error: Exception) -> str:
    """The first line of an error, as Pyro adds lines with the shapes of all sites."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _run_in_plate(plan: _Plan, runs: Sequence[int], given: Draws) -> Batch:
    nodes = nodes_of(plan.program)
    inside = _beside_plates(given, nodes)
    try:
        with _seeded(plan.seed, runs[0], 2 + bool(given)):
            draws = Predictive(plan.program, inside, num_samples=len(runs), parallel=True)()
    except Exception as error:  # a program may raise any error
        none = torch.empty(0, dtype=torch.int64)
        return Batch(none, {}, dict.fromkeys(runs, _said(error)))
    values = _by_run(given | draws, nodes, len(runs))
    return Batch(torch.tensor(list(runs)), values, {})


def _beside_plates(given: Draws, nodes: Mapping[str, Site]) -> Draws:
    """Values (n, *shape) with a dimension for each plate that is in the program but not around
    their site, which :class:`Predictive` takes the event for."""
    plates = [frame for site in nodes.values() for frame in site["cond_indep_stack"]]
    deepest = max((-(frame.dim or 0) for frame in plates), default=0)
    values = dict(given)
    for name, value in given.items():
        if name in nodes:
            absent = max(0, deepest + nodes[name]["fn"].event_dim - (value.dim() - 1))
            values[name] = value.reshape(len(value), *[1] * absent, *value.shape[1:])
    return values


def _check_program(plan: _Plan, batch: Batch, given: Draws) -> None:
    """Compare a program with the one whose runs were kept, by making the first of them again."""
    runs = batch.runs.tolist() if plan.vectorized else [int(batch.runs.min())]
    at = {name: value[runs] for name, value in given.items()}
    rows = [batch.runs.tolist().index(run) for run in runs]
    then = {name: value[rows] for name, value in batch.values.items()}
    now = _run_batch(plan, runs, at)
    if not _alike(then, now.values):
        again = _run_batch(plan, runs, at)
        if now.failed or _alike(now.values, again.values):
            reason = next(iter(now.failed.values()), "other sites, shapes or values")
            raise ValueError(
                f"run {runs[0]} of the program gives {reason} now, expected those of the program "
                "that began the folder; give another folder, or the program that began it"
            )
        warnings.warn(
            "runs of the program are not determined by their seeds, so that it cannot be compared "
            "with the one that began the folder; draw all random numbers by torch, NumPy or Python",
            stacklevel=3,
        )


def _alike(one: Draws, other: Draws) -> bool:
    """Whether two runs have the same sites and shapes, and values up to rounding."""
    if {m: v.shape for m, v in one.items()} != {m: v.shape for m, v in other.items()}:
        return False
    for name, value in one.items():
        first, second = value.double(), other[name].double()
        scale = first[first.isfinite()].abs().amax() if first.isfinite().any() else torch.ones(())
        tolerance = ROUNDING * float(scale) * value.is_floating_point()
        if not torch.allclose(first, second, rtol=0.0, atol=tolerance, equal_nan=True):
            return False
    return True


def _run_all(
    plan: _Plan, store: Store, n: int, given: Draws, workers: int | None, progress: bool
) -> None:
    """Make the runs that a store does not have, and keep them as they come."""
    missing = store.missing(n)
    size = store.batch_size
    batches = [missing[i : i + size] for i in range(0, len(missing), size)]
    tasks = ((plan, runs, {m: v[runs] for m, v in given.items()}) for runs in batches)
    with progress_bar(n, "simulating", "runs", initial=n - len(missing), shown=progress) as bar:
        for batch in _results(tasks, workers):
            if batch.failed and not plan.leave_out:
                run, said = next(iter(batch.failed.items()))
                raise RuntimeError(
                    f"run {run} of the program failed ({said}), expected draws; mend the program, "
                    "or leave such runs out by leave_out=True"
                )
            store.keep(batch)
            bar.update(len(batch.runs) + len(batch.failed))


def _results(tasks: Iterable[tuple[object, ...]], workers: int | None) -> Iterator[Batch]:
    """Batches as they come."""
    if workers is None:
        yield from itertools.starmap(_run_batch, tasks)
        return
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise ImportError(
            "workers are those of joblib, which is not installed: "
            f"{installing('posteriors')}, or leave workers out"
        ) from error
    parallel = Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)
    results = parallel(delayed(_run_batch)(*task) for task in tasks)
    try:
        yield from results
    finally:
        results.close()


def without_gaps(
    draws: Mapping[str, Tensor], names: Sequence[str] | None = None
) -> tuple[Draws, dict[int, str]]:
    """The draws, (n, *shape) by site, without those that have NaN or infinite numbers at the named
    sites (None: all), and the reasons for the others by their index."""
    reasons = dict[int, str]()
    for name in draws if names is None else names:
        if name in draws and draws[name].is_floating_point():
            odd = ~draws[name].reshape(len(draws[name]), -1).isfinite().all(1)
            for place in odd.nonzero().flatten().tolist():
                reasons.setdefault(place, f"NaN or infinite numbers of {name!r}")
    n = max(map(len, draws.values()), default=0)
    kept = [i for i in range(n) if i not in reasons]
    return {name: value[kept] for name, value in draws.items()}, reasons


def warn_of_failures(failed: Mapping[int, str], n: int, stacklevel: int) -> None:
    """Warn of runs that are left out, of n, if there are any, with their reasons by number."""
    if not failed:
        return
    by_reason = dict[str, list[int]]()
    for run, said in sorted(failed.items()):
        by_reason.setdefault(said, []).append(run)
    words = []
    for said, runs in by_reason.items():
        named = ", ".join(map(str, runs[:NAMED])) + (", …" if len(runs) > NAMED else "")
        words.append(f"{len(runs)} by {said} ({'run' if len(runs) == 1 else 'runs'} {named})")
    warnings.warn(
        f"{len(failed):,} of {n:,} runs of the program are left out: {'; '.join(words)}. Where "
        "runs fail depends on the parameters, so the distribution of what is left is that given "
        "success",
        stacklevel=stacklevel,
    )
