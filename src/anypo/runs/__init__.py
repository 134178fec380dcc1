"""A run: everything that has state, and the folder it lives in."""
