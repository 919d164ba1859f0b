"""From weights to batches: the plan of every block, and the stream that follows it."""
