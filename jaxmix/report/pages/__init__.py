"""The pages: one module per kind of run folder."""
