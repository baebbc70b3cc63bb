"""Pictures of diffusions, bounds and data, alone and in TensorBoard."""
