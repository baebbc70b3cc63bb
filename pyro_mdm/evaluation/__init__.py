r"""The bound of trained models, with errors, alone and in pairs.

The diffusion term (1/n) Σ_i ∫ E h(x_i, λ) dλ is estimated as in :mod:`pyro_mdm.evaluation.strata`,
relative to a baseline with an exact denoiser; the prior's divergence is exact. Compared models see
the same data, noise levels and noise: the first variable of the state noise is that of z, whatever
the diffusion. Models with a simulated diffusion are evaluated as in
:mod:`pyro_mdm.simulated.evaluation`. :func:`log_likelihood` also has other methods: importance
weights, and the probability flow.

Two errors are reported. The Monte Carlo error is the change that other noise for the same data
would make, and falls with more network calls; the standard error is over the data and includes it.
"""

from pyro_mdm.evaluation.bounds import Bound, bound
from pyro_mdm.evaluation.comparison import compare, evidence_lower_bound, log_likelihood
from pyro_mdm.evaluation.estimates import Comparison, Difference, Estimate, Weighted
from pyro_mdm.evaluation.importance import importance_weighted, probability_flow
from pyro_mdm.evaluation.weights import Gap

__all__ = [
    "Bound",
    "Comparison",
    "Difference",
    "Estimate",
    "Gap",
    "Weighted",
    "bound",
    "compare",
    "evidence_lower_bound",
    "importance_weighted",
    "log_likelihood",
    "probability_flow",
]
