"""What a method is given and asks, in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


class Problem(NamedTuple):
    """Simulations to learn from, and the conditions whose draws are asked for."""

    task: str
    method: str
    seed: int
    parameters: int  # the number of parameters, which are first in z
    draws: int  # the number of draws for each condition
    steps: int  # training steps; 0: as by default
    z: Numbers  # (n, d), simulations
    given: NDArray[np.bool_]  # (k, d)
    values: Numbers  # (k, d), of which those that are given may be read

    def save(self, folder: Path) -> None:
        """Write it, without the values that are not given."""
        hidden = np.where(self.given, self.values, np.nan)
        np.savez(folder / "problem.npz", z=self.z, given=self.given, values=hidden)
        others = {k: v for k, v in self._asdict().items() if k not in ("z", "given", "values")}
        (folder / "problem.json").write_text(json.dumps(others))

    @classmethod
    def load(cls, folder: Path) -> Problem:
        with np.load(folder / "problem.npz") as arrays:
            return cls(**json.loads((folder / "problem.json").read_text()), **arrays)


def save_answer(folder: Path, draws: Numbers, seconds: dict[str, Any]) -> None:
    """Write draws of z for each condition, (k, draws, d), and what they took."""
    np.save(folder / "draws.npy", draws)
    (folder / "seconds.json").write_text(json.dumps(seconds))


def load_answer(folder: Path) -> tuple[Numbers, dict[str, Any]]:
    return np.load(folder / "draws.npy"), json.loads((folder / "seconds.json").read_text())
