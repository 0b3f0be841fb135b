"""Who runs when, and in which slot: plain Python, tested without a model."""
