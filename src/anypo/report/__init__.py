"""Reports: the console, metric trackers, comparisons of methods and learning curves."""
