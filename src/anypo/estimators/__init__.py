"""Estimators: plain functions of samples, no training."""
