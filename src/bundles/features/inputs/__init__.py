"""What models are given: datasets of any common kind, read item by item into tensors with an identity."""
