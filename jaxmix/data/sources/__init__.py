"""Sources of documents and their readers."""
