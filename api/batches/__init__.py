"""Batches in the API: the clerk that drives them beside the requests, and how rows become jobs and answers."""
