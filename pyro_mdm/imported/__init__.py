"""Networks that others have trained, as denoisers for every linear diffusion.

A network for one noise schedule is a denoiser x̂(z, λ), and so has a likelihood with an error, an
evidence, every sampler and every conditional, under any linear diffusion.
"""

from pyro_mdm.imported.checking import ImportCheck, check_import
from pyro_mdm.imported.denoiser import ImportedDenoiser, Prediction, TimedNetwork
from pyro_mdm.imported.doors import (
    EDMPreconditioned,
    Labelled,
    from_azula,
    from_denoising_diffusion,
    from_diffusers,
    from_sigma_denoiser,
    from_velocity,
)
from pyro_mdm.imported.ends import best_ends
from pyro_mdm.imported.exporting import SigmaDenoiser, to_azula
from pyro_mdm.imported.pipelines import from_pipeline, to_pipeline
from pyro_mdm.imported.schedules import NoiseSchedule, SchedulePoint

__all__ = [
    "EDMPreconditioned",
    "ImportCheck",
    "ImportedDenoiser",
    "Labelled",
    "NoiseSchedule",
    "Prediction",
    "SchedulePoint",
    "SigmaDenoiser",
    "TimedNetwork",
    "best_ends",
    "check_import",
    "from_azula",
    "from_denoising_diffusion",
    "from_diffusers",
    "from_pipeline",
    "from_sigma_denoiser",
    "from_velocity",
    "to_azula",
    "to_pipeline",
]
