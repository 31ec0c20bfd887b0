"""Training and scaling studies on Slurm: what is submitted, and what a job checks before it starts."""
