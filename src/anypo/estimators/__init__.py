"""Procedures that measure data, choices and policies; none of them trains anything."""
