"""Shared by all runs: checkpoints, records, progress, interruption, the optimizer."""
