"""Wrappers: each takes a mixer and returns a mixer."""
