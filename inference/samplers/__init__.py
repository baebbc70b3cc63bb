"""Worked examples of new samplers, to be read and copied.

    python -m inference.sample RUN --sampler inference.samplers.flow:Flow
    python -m inference.train --model toy --sampler mine.py:MySampler

A class or a function of ``steps`` is called with them. A function of ``(diffusion, score, shape,
generator=None, **options)`` is a sampler itself.
"""
