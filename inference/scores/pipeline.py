"""A pipeline of diffusers as a score: its network, as it was trained.

python -m inference.train --model digits --guide vpsde --score FOLDER --steps 0
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.problem import Problem
from pyro_mdm import Diffusion
from pyro_mdm.imported import ImportedDenoiser, from_pipeline


@dataclass(frozen=True)
class PipelineScore:
    """A function of the data set and the diffusion: the denoiser of a pipeline in a folder.

    Pixels are from -1 to 1 for both.
    """

    folder: Path

    def __call__(self, problem: Problem, diffusion: Diffusion) -> ImportedDenoiser:
        """The denoiser, whose baseline is fitted to training data."""
        return from_pipeline(self.folder, problem.fit_x())
