"""The demonstration: a real pretrained model, a small real task, three ways to freeze."""
