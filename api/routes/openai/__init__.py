"""Synchronous doors in OpenAI's shapes: each submits an ordinary job, waits for it and answers."""
