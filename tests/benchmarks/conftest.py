"""What no test of the benchmarks may learn from other tests: that the kernel took their processes for their memory."""

from collections.abc import Iterator

import pytest

from mnist_dist.benchmarks.measure import process


@pytest.fixture(autouse=True, scope="session")
def no_kernel_ooms_of_others() -> Iterator[None]:
    """The kernel counts them for the whole machine, so a process that fails meanwhile would look like one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "kernel_ooms", lambda: 0)
        yield
