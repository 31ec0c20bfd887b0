"""Several processes and devices: who they are, how they start, work together, and end together."""
