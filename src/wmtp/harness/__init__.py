"""lm-evaluation-harness with our models: its own command line, its own tasks, and ours beside."""
