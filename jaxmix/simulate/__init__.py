"""Simulators: worlds in which mixers, laws, clusterers and bandits are tried before real text."""
