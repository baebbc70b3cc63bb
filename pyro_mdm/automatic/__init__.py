"""A diffusion as an automatic guide."""

from pyro_mdm.automatic.guide import AutoMDM

__all__ = ["AutoMDM"]
