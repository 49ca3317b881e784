"""What a training step takes: arithmetic and memory, from a model without weights."""
