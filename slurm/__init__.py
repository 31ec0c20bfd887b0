"""Trainings, scaling studies and surveys on Slurm: what is submitted, and what a job checks before it starts."""
