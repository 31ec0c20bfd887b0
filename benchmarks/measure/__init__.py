"""Runs the cases of suites in fresh processes."""
