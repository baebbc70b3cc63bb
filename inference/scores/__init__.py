"""Worked examples of new scores, to be read and copied.

    python -m inference.train --score inference.scores.beside_the_prior:BesideThePrior
    python -m inference.train --score mine.py:MyScore

A class that is made of a network is enough, or of ``fit``, if it is a denoiser; or else a function
of the data set and the diffusion that returns a score.
"""
