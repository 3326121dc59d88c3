"""Does a trained scorer keep what the question needs? CoViPAL and the network from attention to relevance."""
