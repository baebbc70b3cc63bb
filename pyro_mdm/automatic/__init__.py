"""A diffusion as an automatic guide."""

from pyro_mdm.automatic.checkup import Checkup
from pyro_mdm.automatic.guide import AutoMDM
from pyro_mdm.automatic.local import RowWeights
from pyro_mdm.evaluation.weights import Gap

__all__ = ["AutoMDM", "Checkup", "Gap", "RowWeights"]
