"""A world of charts: pictures that are read, thought about and got wrong, with the truth of every token."""
