"""Worked examples of new scores, to be read and copied.

    python -m inference.train --model toy --score inference.scores.beside_the_prior:BesideThePrior
    python -m inference.train --model toy --score mine.py:MyScore

A score is a class, called with a network; a denoiser and a ``ResidualScore`` are made by their
``fit``. Or it is a function of (problem, diffusion) that returns a score.
"""
