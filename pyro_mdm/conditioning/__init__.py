"""Models of data given a context or other dimensions; classification and imputation by them."""

from pyro_mdm.conditioning.classification import ClassPosterior, class_posterior
from pyro_mdm.conditioning.completions import Completions
from pyro_mdm.conditioning.conditioned import condition
from pyro_mdm.conditioning.contexts import EncodedContext, Labels, Vectors
from pyro_mdm.conditioning.denoiser import (
    ConditionedDecoder,
    ConditionedDenoiser,
    ConditionedLikelihood,
)
from pyro_mdm.conditioning.derived import DerivedDenoiser
from pyro_mdm.conditioning.guided import Guided
from pyro_mdm.conditioning.imputation import impute
from pyro_mdm.conditioning.maps import RandomMaps
from pyro_mdm.conditioning.replacement import Replacement
from pyro_mdm.conditioning.windows import WindowedDenoiser, windowed

__all__ = [
    "ClassPosterior",
    "Completions",
    "ConditionedDecoder",
    "ConditionedDenoiser",
    "ConditionedLikelihood",
    "DerivedDenoiser",
    "EncodedContext",
    "Guided",
    "Labels",
    "RandomMaps",
    "Replacement",
    "Vectors",
    "WindowedDenoiser",
    "class_posterior",
    "condition",
    "impute",
    "windowed",
]
