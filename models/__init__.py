"""Generative programs, one file per data set: data, transform, network, likelihood.

Read one, copy it, change it; ``--model file.py:Name`` runs your copy. See models/base.py.
"""

from __future__ import annotations

from models.base import ImageProblem, Problem
from models.digits import Digits
from models.mnist5k import Mnist5k
from models.toy import Toy

__all__ = ["MODELS", "Digits", "ImageProblem", "Mnist5k", "Problem", "Toy"]

MODELS: dict[str, type[Problem]] = {"toy": Toy, "digits": Digits, "mnist5k": Mnist5k}
"""The names that programs know; any other is given as ``module:Name`` or ``file.py:Name``."""
