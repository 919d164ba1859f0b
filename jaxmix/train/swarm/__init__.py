"""Many small models trained at once on different mixtures."""
