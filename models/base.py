"""The base classes of data sets, for one of your own: see digits.py and docs/guide/data.md.

``Problem`` is the base of all, ``ImageProblem`` that of images with discrete levels, and
``FileImages`` that of images read from files with official parts. No data set augments its images.
"""

from __future__ import annotations

from models.data import DataSet, Part
from models.image_problem import (
    FINE,
    MIXTURE,
    PAPER,
    PUBLISHED,
    PUBLISHED_SMALL,
    PUBLISHED_STRIDED,
    SMALL,
    FileImages,
    ImageProblem,
)
from models.problem import SCORES, Assembly, Problem, ScoreKind

__all__ = [
    "FINE",
    "MIXTURE",
    "PAPER",
    "PUBLISHED",
    "PUBLISHED_SMALL",
    "PUBLISHED_STRIDED",
    "SCORES",
    "SMALL",
    "Assembly",
    "DataSet",
    "FileImages",
    "ImageProblem",
    "Part",
    "Problem",
    "ScoreKind",
]
