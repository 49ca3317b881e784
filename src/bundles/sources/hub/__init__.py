"""The Hugging Face Hub: its own client, and what it cannot be trusted with."""
