"""A real survey of the nodes; survey.py surveys their links as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.survey import play


@pytest.mark.thorough
@pytest.mark.timeout(2400)
def test_who_is_slow_and_who_dies_is_named_and_nobody_else(slurm: Cluster, tmp_path: Path) -> None:
    play(slurm, tmp_path, rounds=0)
