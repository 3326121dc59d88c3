"""Copies of the bundled model that are tuned in another way, and what that takes."""
