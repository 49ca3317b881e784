"""The model's side of stored features: which layers, how it is called, and whether it may be."""
