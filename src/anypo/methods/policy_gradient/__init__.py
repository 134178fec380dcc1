"""Importance ratio, trust region, on- and off-policy policy gradients."""
