"""Plain functions that measure data and policies."""
