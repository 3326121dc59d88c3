"""What the notebooks ask: samples, decoded once and kept, and the numbers of each question with their intervals."""
