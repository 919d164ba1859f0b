"""From weights to batches: plans of blocks, and the stream that follows them."""
