"""Hints, demonstrations and agents."""
