"""Tokenized sources on disk."""
