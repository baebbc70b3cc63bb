"""Worked examples of new diffusions, to read and copy.

A new fixed diffusion costs two matrices: Q skew-symmetric, which moves mass between the variables,
and D positive semi-definite, which adds noise. Everything else (kernels, bound, samplers, pictures)
follows. Run one by naming it:

    python -m inference.train --guide inference.guides.damped_chain:DampedChain
    python -m inference.train --guide my_diffusion.py:MyDiffusion
"""
