"""Control tasks: Gymnasium, tensor environments, offline data."""
