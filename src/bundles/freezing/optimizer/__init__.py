"""What an optimizer may not move, and what it is given to train."""
