"""Functions without state that parts share."""
