"""Where documents are, and how they are read."""
