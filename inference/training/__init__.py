"""Batches, optimizers, the state of training with its steps, and its reports."""
