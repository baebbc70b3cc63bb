"""Multivariate diffusion models as Pyro programs.

The noising diffusion with its auxiliary variables is a guide, the reverse SDE is a model, and SVI
maximizes the evidence lower bound over both at once.

The public names are in ``__init__.pyi``; each loads its own module at its first use. The command
``pyro-mdm`` needs no PyTorch.
"""

from importlib import import_module
from importlib.util import find_spec

import lazy_loader

__version__ = "0.3.0"

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """A public name, or a module of this package."""
    if not name.startswith("_") and name not in __all__ and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    return _public(name)
