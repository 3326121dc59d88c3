"""What the model looked at, step by step, to be looked through (notebook 06)."""
