"""Files as a bad disk, a bad copy or a hasty hand leaves them."""

from __future__ import annotations

import random
from pathlib import Path


def damage(file: Path, how: str, rng: random.Random, other: Path) -> None:
    """Cuts a file off, flips one of its bits, or exchanges its content with that of another of its type."""
    content = bytearray(file.read_bytes())
    if how == "truncate":
        del content[rng.randrange(len(content)) :]
    elif how == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        content, exchanged = bytearray(other.read_bytes()), bytes(content)
        if other.suffix == file.suffix:
            other.write_bytes(exchanged)
    file.write_bytes(content)
