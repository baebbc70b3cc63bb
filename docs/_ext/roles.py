"""What the names of the library are for: the order in which its first page lists them.

Doors are modules that users import from. All other modules are inside: the doors are made of them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DOORS", "ROLES", "Role"]


@dataclass(frozen=True)
class Role:
    """Names of ``pyro_mdm`` with one purpose, and the modules with more of them.

    Attributes:
        title: the purpose.
        guides: pages that explain it.
        names: names of ``pyro_mdm``.
        doors: modules, as what stands behind ``pyro_mdm.``.
    """

    title: str
    guides: tuple[str, ...]
    names: tuple[str, ...] = ()
    doors: tuple[str, ...] = ()


ROLES = (
    Role(
        "Model, guide and bound",
        ("guide/concepts", "guide/pyro"),
        ("DiffusionModel", "DiffusionGuide", "MDM_ELBO", "elbo_terms", "ELBOTerms"),
        ("training", "budgets"),
    ),
    Role(
        "Diffusions",
        ("guide/diffusions",),
        (
            *("VPSDE", "CLD", "MALDA", "ALDA", "HOLD", "LearnedDiffusion", "LinearDiffusion"),
            *("LinearSDE", "MomentumVE", "VE", "SubVP", "Cosine", "RectifiedFlow", "Interpolant"),
            *("PerDimensionDiffusion", "TimeVaryingDiffusion", "TimeVaryingLearnedDiffusion"),
            *("TimeVaryingSDE", "Diffusion"),
        ),
        ("diffusions", "varying", "by_dimension"),
    ),
    Role(
        "Diffusions that see the data",
        ("guide/seeing",),
        ("EncodedDiffusion", "DataDrivenDiffusion", "StateDenoiser"),
        ("seeing",),
    ),
    Role(
        "Simulated diffusions",
        ("guide/simulated",),
        ("NonlinearDiffusion", "HamiltonianDiffusion", "LearnedDrift", "Simulated", "Simulation"),
        ("simulated",),
    ),
    Role(
        "Scores and networks",
        ("guide/concepts", "guide/extending"),
        ("Denoiser", "NoisePrediction", "RawScore", "ResidualScore"),
        ("scores", "networks"),
    ),
    Role("Data with levels", ("guide/likelihoods",), ("DiscreteDenoiser",), ("levels",)),
    Role("Networks that others have trained", ("guide/imported",), (), ("imported",)),
    Role("Likelihoods", ("guide/likelihoods",), ("bits_per_dim",), ("likelihoods",)),
    Role("Evaluation", ("guide/likelihoods",), ("bound", "Bound"), ("evaluation", "auxiliary")),
    Role("Samplers", ("guide/sampling",), (), ("samplers",)),
    Role(
        "Conditioning and imputation",
        ("guide/contexts", "guide/conditioning"),
        ("condition", "impute"),
        ("contexts", "conditioning"),
    ),
    Role("Measurements", ("guide/measurements",), (), ("measurements",)),
    Role(
        "Tables",
        ("guide/tables",),
        ("MixedDenoiser", "OneHot"),
        ("tables", "tables.columns"),
    ),
    Role("Priors", ("guide/priors",), ("MDM",)),
    Role(
        "Simulators and their posteriors",
        ("guide/simulators", "guide/simulator-likelihoods"),
        (),
        ("posteriors",),
    ),
    Role("Automatic guides", ("guide/automatic",), ("AutoMDM",), ("automatic",)),
    Role(
        "Paths",
        ("guide/pyro", "guide/mathematics"),
        ("NoisingPath", "GenerativePath", "GenerativeChain", "SimulatedPath"),
        ("paths",),
    ),
    Role(
        "Figures",
        ("guide/tensorboard",),
        (),
        (
            *("plots.pictures", "plots.figures", "plots.tables", "plots.posteriors"),
            *("plots.restorations", "plots.tensorboard"),
        ),
    ),
)
"""All names of ``pyro_mdm``, each once."""
DOORS = tuple(f"pyro_mdm.{door}" for role in ROLES for door in role.doors)
