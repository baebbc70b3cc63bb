"""Worked examples of new samplers, to read and copy.

    python -m inference.sample RUN --sampler inference.samplers.flow:Flow
    python -m inference.train --model toy --sampler mine.py:MySampler

A function of ``(diffusion, score, shape, generator=None, **options)`` is a sampler. Any other class
or function is called with ``steps``.
"""
