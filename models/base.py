"""Parts of a data set of one's own: see digits.py, and README.md here.

``Problem`` is what a program needs to know of a data set; ``ImageProblem`` adds what images with
discrete levels have in common, and ``FileImages`` what those read from files with official parts
have. No data set changes its images at random.
"""

from __future__ import annotations

from models.data import DataSet, Part
from models.image_problem import (
    FINE,
    MIXTURE,
    PAPER,
    PUBLISHED,
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
