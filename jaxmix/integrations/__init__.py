"""Plugs for other trainers; each module needs nothing of the trainer until it is used with it."""
