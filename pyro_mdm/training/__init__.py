"""Training by any loss: steps, learning rates, averaged weights, and the best by validation."""

from pyro_mdm.training.averages import MovingAverage
from pyro_mdm.training.order import indices
from pyro_mdm.training.patience import FALL, last_fall
from pyro_mdm.training.rates import schedule
from pyro_mdm.training.trainer import Trainer

__all__ = ["FALL", "MovingAverage", "Trainer", "indices", "last_fall", "schedule"]
