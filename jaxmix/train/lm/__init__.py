"""Training a language model on a mixture."""
