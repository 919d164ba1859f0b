"""Adapters for other trainers; each module imports the trainer only when it is used."""
