"""Value learning: off-policy, offline and from demonstrations."""
