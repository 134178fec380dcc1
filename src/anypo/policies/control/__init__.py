"""Policies for control."""
