"""Text encoders: documents in, unit vectors out."""
