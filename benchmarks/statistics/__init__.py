"""Estimates, intervals, tests and steady states: pure functions on arrays that know no record."""
