"""Variants of the training step, which tell apart where its time goes: without real input, without all-reduce."""

from dataclasses import dataclass

from mnist_dist.distributed.turns import FULL


@dataclass(frozen=True)
class Variant:
    """One way to take a training step.

    Attributes:
        resident: on one batch that lies in memory, instead of the input pipeline's.
        reduced: with gradients summed over replicas; without, no rank waits for another, and what it trains is wrong.
    """

    resident: bool
    reduced: bool


VARIANTS = {
    FULL: Variant(resident=False, reduced=True),
    "resident": Variant(resident=True, reduced=True),
    "unreduced": Variant(resident=False, reduced=False),
    "resident-unreduced": Variant(resident=True, reduced=False),
}
