"""The likelihood of a trained network that a package ships, under our diffusions.

    python -m tests.benchmarks.imported_terrain
    python -m tests.benchmarks.imported_terrain --summary docs/measured/data

``adaptive-terrain-diffusion`` has the weights of a U-Net in its wheel: D(w, σ, difficulty) of
heights of 128×128 places, for σ from 0.002 to 80, distilled to draw a terrain by one call. It is
read by :func:`pyro_mdm.imported.from_sigma_denoiser`. Printed are its errors by log SNR, and bits
per dimension of terrains that it draws itself, as it scales them, at four difficulties, given the
difficulty that they were drawn at and given the three others.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pyro_mdm import VPSDE, DiffusionGuide, DiffusionModel, bound, condition
from pyro_mdm.conditioning import Vectors
from pyro_mdm.imported import check_import, from_sigma_denoiser
from tests.benchmarks.documented import mean_and_error, write
from tests.benchmarks.imported_packages import ENVIRONMENT, enter
from tests.imported.test_imported import whole

DIFFICULTIES = (1, 34, 67, 100)
LEVELS = ("log_snr", "error", "linear_error")
TERRAINS, DRAWS = 4, 4
"""Terrains of each difficulty, and evaluations of each for a bound."""


class Terrain(nn.Module):
    """The network of the package."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, w: Tensor, sigma: Tensor, difficulty: Tensor) -> Tensor:
        inputs = (w, sigma, difficulty[:, 0])
        feeds = zip(("noisy", "sigma", "difficulty"), inputs, strict=True)
        arrays = {name: tensor.detach().float().numpy() for name, tensor in feeds}
        return torch.from_numpy(self.generator.session.run(["denoised"], arrays)[0])


def measure(out: Path) -> None:
    from terrain_diffusion import TerrainGenerator

    generator = TerrainGenerator(device="cpu")
    drawn_at = [difficulty for difficulty in DIFFICULTIES for _ in range(TERRAINS)]
    x = torch.from_numpy(
        generator._to_model_space(generator.generate(len(drawn_at), difficulty=drawn_at, seed=0))
    )
    labels = (torch.tensor(drawn_at)[:, None] - 1) / (generator.num_classes - 1)
    given = Vectors(torch.zeros(1), torch.ones(1))
    denoiser = from_sigma_denoiser(
        Terrain(generator), x, generator.sigma_min, generator.sigma_max, context_size=given.size
    )
    file = out / "imported-terrain-check.csv"
    if not file.exists():
        some = slice(None, None, TERRAINS)
        check = check_import(denoiser, x[some], context=given.encode(labels)[some])
        print(check)
        errors = {name: getattr(check, name).tolist() for name in LEVELS}
        pd.DataFrame(errors).to_csv(file, index=False)

    diffusion = VPSDE(**whole(denoiser))
    model = DiffusionModel(diffusion, denoiser, event_shape=x.shape[1:], context=given)
    guide, bits = DiffusionGuide(diffusion), {}
    for difficulty in DIFFICULTIES:
        label = (difficulty - 1) / (generator.num_classes - 1)
        labelled = condition(model, context=torch.full((len(x), 1), label))
        per_datum = bound(labelled, guide, x, draws=DRAWS).per_datum
        bits[str(difficulty)] = (-per_datum / x[0].numel() / torch.log(torch.tensor(2.0))).tolist()
    rows = pd.DataFrame({"drawn_at": drawn_at} | bits)
    print(rows)
    rows.to_csv(out / "imported-terrain.csv", index=False)


def summarize(out: Path, folder: Path) -> None:
    rows = pd.read_csv(out / "imported-terrain.csv")
    given = rows[[str(difficulty) for difficulty in DIFFICULTIES]]
    made = []
    for difficulty in DIFFICULTIES:
        here = given[rows.drawn_at == difficulty]
        others = here.drop(columns=str(difficulty)).min(axis=1)
        cells: dict[str, Any] = {"terrains": f"of difficulty {difficulty}"}
        for name, values in (("bits", here[str(difficulty)]), ("bits_others", others)):
            cells[name], cells[f"{name}_se"] = mean_and_error(values)
        cells["recognized"] = int((here.idxmin(axis=1) == str(difficulty)).sum())
        made.append(cells)
    levels = pd.read_csv(out / "imported-terrain-check.csv")
    levels.insert(0, "noise", [f"σ = {value:.3g}" for value in (-levels.log_snr / 2).map(math.exp)])
    command = "python -m tests.benchmarks.imported_terrain"
    write(
        folder / "imported-terrain.csv",
        pd.DataFrame(made),
        [command],
        "0",
        "bits/dim",
        [f"errors are over {TERRAINS} terrains"],
    )
    write(folder / "imported-terrain-check.csv", levels, [command], "0", digits=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of raw numbers")
    parser.add_argument("--summary", type=Path, help="folder of the tables made of --out")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    options = parser.parse_args()
    enter(options.environment, "tests.benchmarks.imported_terrain")
    torch.set_num_threads(1)
    if options.summary:
        summarize(options.out, options.summary)
    else:
        measure(options.out)


if __name__ == "__main__":
    main()
