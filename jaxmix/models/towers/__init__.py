"""Image and text towers for contrastive training."""
