"""Loops that read like the algorithm box."""
