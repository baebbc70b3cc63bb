"""Worked examples of new likelihoods p(x | y_ε), to be read and copied.

    python -m inference.train --model toy --likelihood inference.likelihoods.heavy_tails:HeavyTails
    python -m inference.train --model toy --likelihood mine.py:MyLikelihood

A class or a function is called without arguments, or with ``levels``, their number in images, if it
takes that.
"""
