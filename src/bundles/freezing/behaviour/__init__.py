"""How a frozen module is held: what it reads, what is changed on it, and what survives train()."""
