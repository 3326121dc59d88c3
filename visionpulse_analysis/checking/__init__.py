"""Self-checks of a loaded model."""
