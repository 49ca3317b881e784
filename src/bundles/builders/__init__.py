"""Builder verbs: construct a module, read a weight file, put one into the other."""
