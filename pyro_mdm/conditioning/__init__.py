"""Models of data given what is known of them: a context, other dimensions, or what is there."""

from pyro_mdm.conditioning.conditioned import (
    ConditionedDecoder,
    ConditionedDenoiser,
    ConditionedLikelihood,
    condition,
)
from pyro_mdm.conditioning.derived import DerivedDenoiser
from pyro_mdm.conditioning.imputation import impute

__all__ = [
    "ConditionedDecoder",
    "ConditionedDenoiser",
    "ConditionedLikelihood",
    "DerivedDenoiser",
    "condition",
    "impute",
]
