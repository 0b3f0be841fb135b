"""Webhooks: a signed message to a receiver of the user's when a job has ended.

`payload` is what is told, `signature` proves who tells it, `destination` and `addresses` decide where it may go,
`sender` makes one try, `schedule` says when the next one is due, and `deliverer` does all of it for every ended job.
"""
