"""Where a training runs: in this process, or in one process per device that this one starts and watches."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from mnist_dist.config import Config, config_to_yaml
from mnist_dist.data.dataset import load_arrays
from mnist_dist.distributed import launch
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.strategies.resolve import resolve_strategy
from mnist_dist.errors import TrainingError
from mnist_dist.strategies import STRATEGIES
from mnist_dist.training.plan import make_plan
from mnist_dist.training.workdir import check_workdir


def train_here_or_in_ranks(config: Config, workdir: Path, resume: bool, cluster: Cluster) -> dict[str, Any]:
    """Trains as the strategy needs it; see `trainer.train` for arguments, result and errors."""
    runtime = resolve_strategy(config.runtime, cluster)
    if cluster.launcher != "none" or STRATEGIES[runtime.strategy].one_process:
        from mnist_dist.training.trainer import train

        return train(config, workdir, resume)
    return train_in_ranks(config.model_copy(update={"runtime": runtime}), workdir, resume)


def train_in_ranks(config: Config, workdir: Path, resume: bool) -> dict[str, Any]:
    """Trains with one process per device on this host. What can be found wrong is found before any of them starts."""
    folder = check_workdir(workdir, config, resume)
    if resume and (result := folder.read_result()) and result["status"] == "completed":
        return result
    make_plan(config, len(load_arrays(config.data).train_images))
    command = [sys.executable, "-m", "mnist_dist", "train", "--config", "/dev/stdin", "--workdir", str(workdir)]
    command += ["--resume"] if resume else []
    # A file without a name: nothing is left of it, however this process ends.
    with tempfile.TemporaryFile("w", encoding="utf-8") as file:
        file.write(config_to_yaml(config))
        file.flush()
        launch.run_ranks(command, config.runtime.devices, strategy=config.runtime.strategy, stdin=file)
    result = folder.read_result()
    if result is None:
        raise TrainingError(f"launch: all ranks ended well, but '{folder.result_file}' is missing; is the disk shared?")
    return result
