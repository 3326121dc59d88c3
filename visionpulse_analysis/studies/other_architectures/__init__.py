"""What of the computation of pictures can go, where no patch does: YOPO and ViCA, tuned and not."""
