"""Configuration files: read, checked, and turned into what they name."""
