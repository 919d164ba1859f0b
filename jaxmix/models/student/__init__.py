"""The distilled classifier that labels a whole corpus."""
