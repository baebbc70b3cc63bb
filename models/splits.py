"""The splits of data, by the names that pickles of earlier versions have."""

from pyro_mdm.support.splits import Rows, split_rows

__all__ = ["Rows", "split_rows"]
