"""Models of transformers: the classes of its own tables, built from a configuration, nothing fetched."""
