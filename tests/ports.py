"""Ports that no other test takes."""

import contextlib

from mnist_dist.distributed.cluster import free_ports

_HELD = contextlib.ExitStack()


def free_port(count: int) -> int:
    """Returns the first of `count` neighbouring free ports, which this process holds until it ends."""
    return _HELD.enter_context(free_ports(count))
