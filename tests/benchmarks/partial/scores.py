"""C2ST of draws of conditionals, by the classifier of the source."""

from __future__ import annotations

import numpy as np

from tests.benchmarks.partial.problem import Numbers


def c2st(reference: Numbers, draws: Numbers, seed: int = 1) -> float:
    """The accuracy of a random forest that tells draws (n, d) from as many of the reference.

    The forest has 100 trees, and is scored in five folds. A forest does not depend on the scale of
    a number. Draws that are not finite are told from the reference at once.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import KFold, cross_val_score

    finite = np.nan_to_num(draws, nan=1e30, posinf=1e30, neginf=-1e30)
    x = np.concatenate([reference, np.clip(finite, -1e30, 1e30)])
    y = np.repeat([0, 1], [len(reference), len(draws)])
    folds = KFold(5, shuffle=True, random_state=seed)
    forest = RandomForestClassifier(random_state=seed)
    return float(cross_val_score(forest, x, y, cv=folds).mean())
