"""A diffusion as an automatic guide."""

from pyro_mdm.automatic.bidirectional import Gap, gap
from pyro_mdm.automatic.checkup import Checkup
from pyro_mdm.automatic.guide import AutoMDM

__all__ = ["AutoMDM", "Checkup", "Gap", "gap"]
