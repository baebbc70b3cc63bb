"""Draws of simulators in folders that are written batch by batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.posteriors.reading import Draws, check_same
from pyro_mdm.support.checks import checked_arguments
from pyro_mdm.support.files import JsonObject, temporary
from pyro_mdm.support.saved import PretrainedError, damage_of, read_saved, write_saved

__all__ = ["Batch", "Store", "read_draws"]

HEADER, HEADER_KIND = "simulations.safetensors", "simulations"
"""The file with the seed and the options of a folder's draws, and its kind in words."""
FILES, KIND = "runs-*.safetensors", "runs of simulations"
"""The files of draws, and their kind in words."""
RUNS = ".runs"
"""The key of the numbers of runs in a file of draws; no site has such a name."""


class Batch(NamedTuple):
    """The results of some runs of a program."""

    runs: Tensor  # (n,) int64, the numbers of the runs that succeeded
    values: Draws  # (n, *shape) by site
    failed: dict[int, str]  # the errors of other runs by their numbers


class Store:
    """Draws that are kept in a folder as they come, or in memory.

    Without a seed it is that of the folder, or one by the global generator. A batch size is for a
    new folder. ``in_plates`` is the number of all runs, if those of a batch are drawn in a plate;
    None: each run has its own seed. ``at`` has the values of sites at which the program runs. A
    folder of other draws is a ValueError.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        seed: int | None,
        batch_size: int,
        in_plates: int | None,
        at: Mapping[str, Tensor] | None,
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._batches: list[Batch] = []
        saved = None if self._folder is None else _header(self._folder)
        if seed is None:
            new = int(torch.randint(2**62, ()))  # in any case, so that what comes next is the same
            seed = saved["seed"] if saved else new
        self.seed = seed
        facts = {"seed": seed, "in_plates": in_plates, "at": None if at is None else _digest(at)}
        self.batch_size, self._n = batch_size, 0
        self._facts = facts | {"batch_size": batch_size}
        if self._folder is None or saved is None:
            return
        for name, value in facts.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"{self._folder} has simulations with {name} = {saved.get(name)}, expected "
                    f"{value}; give another folder, or the program and options that wrote it"
                )
        self.batch_size = saved["batch_size"] if in_plates is not None else batch_size
        self._facts, self._n = {name: saved[name] for name in saved if name != "n"}, saved["n"]
        self._batches = _batches(self._folder, self._facts)

    def begin(self, n: int) -> None:
        """Write that the folder is for n runs, and remove what a killed process left."""
        if self._folder is None:
            return
        for path in self._folder.glob(temporary(Path("*.safetensors")).name):
            path.unlink(missing_ok=True)
        if n > self._n:
            write_saved(self._folder / HEADER, HEADER_KIND, self._facts | {"n": n}, {})

    def missing(self, n: int) -> list[int]:
        """The numbers of the first n runs that have not been made."""
        there = {run for b in self._batches for run in [*b.runs.tolist(), *b.failed]}
        return [run for run in range(n) if run not in there]

    def keep(self, batch: Batch) -> None:
        """Keep a batch, which is on the disk when this returns."""
        self._batches.append(batch)
        if self._folder is None:
            return
        first = min([*batch.runs.tolist(), *batch.failed])
        content = {"of": self._facts, "failed": list(batch.failed.items())}
        path = self._folder / FILES.replace("*", f"{first:08d}")
        write_saved(path, KIND, content, {**batch.values, RUNS: batch.runs})

    @property
    def first(self) -> Batch | None:
        """The batch with the first run that succeeded; None: there is none."""
        some = [batch for batch in self._batches if len(batch.runs)]
        return min(some, key=lambda batch: int(batch.runs.min()), default=None)

    def all(self, n: int) -> Batch:
        """The results of the first n runs, in order."""
        return _joined(self._batches, n)


def _joined(batches: Sequence[Batch], n: int) -> Batch:
    some = [batch for batch in batches if len(batch.runs)]
    failed = {run: said for batch in batches for run, said in batch.failed.items() if run < n}
    if not some:
        return Batch(torch.empty(0, dtype=torch.int64), {}, failed)
    shapes = [{m: tuple(v.shape[1:]) for m, v in batch.values.items()} for batch in some]
    for other in shapes:
        check_same(shapes[0], other)
    runs = torch.cat([batch.runs for batch in some])
    order = runs.argsort()
    order = order[runs[order] < n]
    values = {name: torch.cat([b.values[name] for b in some])[order] for name in shapes[0]}
    return Batch(runs[order], values, failed)


def _digest(at: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(at):
        digest.update(name.encode())
        digest.update(at[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _header(folder: Path) -> JsonObject | None:
    """The seed and the options of a folder's draws; None: a new or an empty folder."""
    path = folder / HEADER
    if path.is_file():
        return read_saved(path, HEADER_KIND).content
    others = sorted(p.name for p in folder.glob("*") if not p.name.startswith("."))
    if others:
        raise ValueError(
            f"{folder} has other files ({others[0]}), expected an empty folder, or one that "
            "simulate wrote; give another folder"
        )
    return None


def _batches(folder: Path, facts: Mapping[str, object]) -> list[Batch]:
    """The batches of a folder with the given facts."""
    batches, seen = [], set[int]()
    for path in sorted(folder.glob(FILES)):
        try:
            saved = read_saved(path, KIND)
        except PretrainedError as error:
            raise PretrainedError(f"{error}, or remove it, and its runs are made anew") from error
        with damage_of(path):
            runs = saved.tensors.pop(RUNS)
            batch = Batch(runs, saved.tensors, dict(saved.content["failed"]))
            numbers = {*runs.tolist(), *batch.failed}
            if saved.content["of"] != facts or numbers & seen:
                raise PretrainedError(
                    f"{path} has runs of other simulations than {HEADER}, or runs that another "
                    "file has, expected each run of these once; remove it, and its runs are made "
                    "anew"
                )
        batches.append(batch)
        seen |= numbers
    return batches


@checked_arguments
def read_draws(folder: str | os.PathLike[str], names: Sequence[str]) -> Draws:
    """Draws of sites from a folder that ``simulate`` wrote to its end, (n, *shape) by site.

    Args:
        folder: the folder.
        names: the names of the sites that are read.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: other files, lacking runs, or no such site.
        PretrainedError: a damaged file.
    """
    path = Path(folder)
    if not path.exists():
        raise FileNotFoundError(f"there are no draws at {path}, expected a folder of simulate")
    if not path.is_dir() or (saved := _header(path)) is None:
        raise ValueError(
            f"{path} is no folder that simulate wrote, expected one; read other files by their "
            "own packages, such as pandas, and give tensors (n, *shape) by site"
        )
    facts = dict(saved)
    with damage_of(path / HEADER):
        n = int(facts.pop("n"))
    whole = _joined(_batches(path, facts), n)
    made = len(whole.runs) + len(whole.failed)
    if made < n:
        raise ValueError(
            f"{path} has {made:,} of {n:,} runs, as a kill or a lost file leaves it, expected all; "
            f"simulate(program, {n}, folder=…) makes the others"
        )
    if lacking := [name for name in names if name not in whole.values]:
        raise ValueError(
            f"{path} has no site {lacking[0]!r}, expected it among {', '.join(whole.values)}; name "
            "the program's sites"
        )
    return {name: whole.values[name] for name in names}
