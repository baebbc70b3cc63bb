"""Worked examples of new kinds of columns, to read and copy.

    python -m inference.train --model tabular --data wind.csv --columns "wind=angle.py:Angle"

A kind is a subclass of :class:`pyro_mdm.tables.Column`. A run finds it again by the name that you
gave.
"""
