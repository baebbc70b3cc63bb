"""Multivariate diffusion models as Pyro programs.

The noising diffusion with its auxiliary variables is a guide, the reverse SDE is a model, and SVI
maximizes the evidence lower bound over both at once.

PyTorch is loaded at the first use of a name: the command ``pyro-mdm`` needs none.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

if TYPE_CHECKING:
    from pyro_mdm.public import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        """A module of this package, or a name of :mod:`pyro_mdm.public`."""
        if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        public = import_module("pyro_mdm.public") if name[0] != "_" or name == "__all__" else None
        if not hasattr(public, name):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(public, name)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("pyro_mdm.public").__all__})
