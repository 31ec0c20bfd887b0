"""The training loop, what happens between its steps, and what it writes."""
