"""What Horovod's strategy says of the Horovod that is installed."""

import pytest

from mnist_dist.distributed import horovod_build


@pytest.mark.slow
@pytest.mark.parametrize(
    ("built_here", "said"),
    [
        (True, "; idle ranks sleep until there is work, 20 ms at most"),
        (False, "; as released: ranks wake up every millisecond, even with nothing to send; `mnist-dist "),
    ],
)
def test_what_the_doctor_says_of_idle_ranks(built_here: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("horovod.tensorflow", reason="needs Horovod")
    from mnist_dist.distributed.strategies.horovod import Horovod

    monkeypatch.setattr(horovod_build, "waits_for_tensors", lambda: built_here)
    assert said in Horovod.describe_installation()
