"""What is frozen as observed on the module, and the proof that it did not move."""
