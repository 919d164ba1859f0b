"""How far a law can be trusted, and which law suits a table."""
