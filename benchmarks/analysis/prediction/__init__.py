"""Throughput on numbers of devices that were not measured: three models of it, and what they foretell together."""
