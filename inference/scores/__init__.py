"""Worked examples of new scores, to read and copy.

    python -m inference.train --model toy --score inference.scores.beside_the_prior:BesideThePrior
    python -m inference.train --model toy --score mine.py:MyScore

A class is called with a network; denoisers and a ``ResidualScore`` are made by their ``fit``. A
function of (problem, diffusion) returns a score.
"""
