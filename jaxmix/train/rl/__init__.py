"""Reinforcement fine-tuning under a curriculum."""
