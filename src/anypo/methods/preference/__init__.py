"""Learning from preferences: pairs of answers, given, or sampled and scored."""
