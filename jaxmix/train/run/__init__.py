"""What all runs share: checkpoints, records, progress, interruption, the optimizer."""
