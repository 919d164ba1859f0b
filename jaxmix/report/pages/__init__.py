"""The pages: one module a kind of run folder."""
