"""Measured images, a network that was trained on whole ones, and scores of restorations."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm import DiffusionModel
from pyro_mdm.measurements import Matrix
from tests.benchmarks.inverse_problems.problems import InverseProblem

__all__ = ["INTERVAL", "PEAK", "Images"]

INTERVAL = 0.9
PEAK = 2.0
"""From the darkest to the lightest pixel."""


@dataclass(frozen=True)
class Images:
    """Measured images, in model space, as a process of methods is given them."""

    model: str  # folder
    truth: NDArray[np.float32]  # (k, *event_shape)
    obs: NDArray[np.float64]  # (k, m)
    H: NDArray[np.float64]  # (m, d)
    open: NDArray[np.bool_]  # (d,), pixels that were not seen themselves
    noise: float

    def save(self, folder: Path) -> None:
        values = asdict(self)
        text = {name: values.pop(name) for name in ("model", "noise")}
        np.savez(folder / "images.npz", **values)
        (folder / "images.json").write_text(json.dumps(text))

    @classmethod
    def load(cls, folder: Path) -> Images:
        with np.load(folder / "images.npz") as arrays:
            return cls(**json.loads((folder / "images.json").read_text()), **dict(arrays))

    def problem(self) -> InverseProblem:
        """With the network, which is not told the context of an image if it could be."""
        model: Any = DiffusionModel.from_pretrained(self.model).eval()
        ends = float(model.diffusion.max_log_snr), float(model.diffusion.terminal_log_snr)
        if model.context is not None:
            model = model.given_context(model.context.unknown)
        score = model.score_function.requires_grad_(False)
        operator = Matrix(torch.from_numpy(self.H), self.truth.shape[1:])
        return InverseProblem(score, operator, torch.from_numpy(self.obs), self.noise, *ends)

    def scores(self, x: Tensor) -> list[dict[str, Any]]:
        """A row for each image, of restorations (n, k, d).

        ``psnr`` of their mean and ``psnr_sample`` of the first, dB; ``crps``, the mean over pixels
        of E|X - x| - ½ E|X - X'|, without bias; ``inside``, the fraction of pixels in central
        intervals, whose ends are draws; ``distance``, the root mean square of H x - obs. Pixels
        that were seen themselves count for the first two alone.
        """
        truth = torch.from_numpy(self.truth).double().flatten(1)
        x, n = x.double(), len(x)
        free = torch.from_numpy(self.open)
        rest = x @ torch.from_numpy(self.H).mT - torch.from_numpy(self.obs)
        columns = {
            "psnr": psnr(x.mean(0), truth),
            "psnr_sample": psnr(x[0], truth),
            "crps": crps(x, truth)[:, free].mean(1),
            "inside": inside(x, truth)[:, free].double().mean(1),
            "distance": rest.square().mean((0, 2)).sqrt(),
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        assert n > 1
        return [{"image": k} | dict(zip(columns, row, strict=True)) for k, row in enumerate(rows)]


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Of images (k, d), (k,)."""
    return 10 * torch.log10(PEAK**2 / (x - truth).square().mean(1).clamp_min(1e-12))


def crps(x: Tensor, truth: Tensor) -> Tensor:
    """Of draws (n, k, d) of each pixel, (k, d)."""
    n = len(x)
    off = (x - truth).abs().mean(0)
    weights = 2 * torch.arange(1, n + 1, dtype=x.dtype) - n - 1
    apart = (weights[:, None, None] * x.sort(0).values).sum(0) * 2 / (n * (n - 1))  # E|X - X'|
    return off - apart / 2


def inside(x: Tensor, truth: Tensor) -> Tensor:
    """Whether pixels (k, d) are in the central intervals of draws (n, k, d).

    Ties with draws, which levels have, are broken at random.
    """
    n = len(x)
    outside = math.floor((1 - INTERVAL) / 2 * (n + 1) + 1e-9)
    below, equal = (x < truth).sum(0), (x == truth).sum(0)
    u = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rank = below + (u * (equal + 1)).floor()
    return (rank >= outside) & (rank <= n - outside)
