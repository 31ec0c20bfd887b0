"""What Slurm's commands print, which sites add to."""

import os

import pytest

from mnist_dist.slurm.scheduler import submit


@pytest.mark.parametrize(
    "printed",
    [
        "Submitted batch job 17",
        "17;far",  # As with --parsable, of a cluster in a federation.
        "Submitted batch job 17 on cluster far",
        "--> Checking the quota of Example3 ... OK\nSubmitted batch job 17\n5 jobs wait before it\n",
        "Node hours left:\n1200\n17\n",
    ],
)
def test_the_number_of_a_job_is_told_from_what_a_site_prints_before_it(printed: str) -> None:
    assert submit(["printf", printed], os.environ) == "17"
