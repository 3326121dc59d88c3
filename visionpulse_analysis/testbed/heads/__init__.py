"""Heads, small modules that are trained beside a frozen model: their data, their losses, and one loop for all."""
