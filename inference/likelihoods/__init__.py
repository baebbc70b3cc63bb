"""Worked examples of new likelihoods p(x | y_ε), to read and copy.

    python -m inference.train --model toy --likelihood inference.likelihoods.heavy_tails:HeavyTails
    python -m inference.train --model toy --likelihood mine.py:MyLikelihood

A class or a function is called without arguments, or with ``levels``, the number of levels of
images, if it takes that.
"""
