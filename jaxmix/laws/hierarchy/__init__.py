"""The hierarchical transfer law."""
