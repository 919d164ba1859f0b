"""Training on the selected part of what is drawn."""
