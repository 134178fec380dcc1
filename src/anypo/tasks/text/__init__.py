"""Text tasks: prompts, rewards, preference data."""
