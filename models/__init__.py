"""Generative programs, one file per data set: data, transform, network, likelihood.

Read one, copy it, change it; ``--model file.py:Name`` runs your copy. Images need a name and
``load``, which returns all of them in a fixed order, or ``split``, which returns official parts.
See docs/guide/data.md.
"""

from __future__ import annotations

from models.base import ImageProblem, Problem
from models.digits import Digits
from models.imagenet32 import ImageNet32New, ImageNet32Old
from models.images import Images
from models.mnist5k import Mnist5k
from models.official import CIFAR10, MNIST, FashionMNIST
from models.tabular import Tabular
from models.toy import Toy
from pyro_mdm.support.checks import DataError

__all__ = [
    "CIFAR10",
    "MNIST",
    "MODELS",
    "DataError",
    "Digits",
    "FashionMNIST",
    "ImageNet32New",
    "ImageNet32Old",
    "ImageProblem",
    "Images",
    "Mnist5k",
    "Problem",
    "Tabular",
    "Toy",
]

MODELS: dict[str, type[Problem]] = {
    "toy": Toy,
    "digits": Digits,
    "mnist5k": Mnist5k,
    "mnist": MNIST,
    "fashion_mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "imagenet32_old": ImageNet32Old,
    "imagenet32_new": ImageNet32New,
    "images": Images,
    "tabular": Tabular,
}
"""The data sets that programs know by name; others are ``module:Name`` or ``file.py:Name``."""
