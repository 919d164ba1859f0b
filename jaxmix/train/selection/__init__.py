"""Training on a selected part of what is drawn."""
