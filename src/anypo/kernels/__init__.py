"""What exists for speed alone; each kernel has a plain twin."""
