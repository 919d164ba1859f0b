"""Whole jobs behind the commands: configurations, and what runs between them and a folder of results."""
