"""Programs that fit and question the models in :mod:`models`; run them from the checkout.

``python -m inference.train``, ``inference.evaluate RUN`` and ``inference.sample RUN``;
``--help`` lists what each of them takes.
"""
