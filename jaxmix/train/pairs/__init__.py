"""Contrastive training on image–text pairs with selection."""
