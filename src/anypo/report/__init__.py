"""What a run tells: the console, metric trackers, comparisons of methods and learning curves."""
