"""A process that measures one case which is no training, as its kind says.

    python -m mnist_dist.benchmarks.measure.worker CASE_FILE RESULT_FILE

Started once, it starts one process per device where the strategy needs them; started by `srun`, it is one of them.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mnist_dist.benchmarks.measure.suite import training_settings
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import WorkerKind, kind
from mnist_dist.config import load_config
from mnist_dist.distributed.cluster import find_cluster
from mnist_dist.distributed.launch import join_ranks, run_ranks
from mnist_dist.distributed.strategies.resolve import make_strategy, resolve_strategy
from mnist_dist.distributed.turns import Turns
from mnist_dist.distributed.watchdog import Watchdog
from mnist_dist.errors import UserError
from mnist_dist.files import write_json
from mnist_dist.lazy import UNUSED_BY_COMMANDS, hidden_from_keras
from mnist_dist.network.forward import choose_form
from mnist_dist.runtime import configure_runtime
from mnist_dist.strategies import STRATEGIES


def main(arguments: Sequence[str] | None = None) -> int:
    case_file, result_file = (Path(argument) for argument in arguments or sys.argv[1:])
    case = Case.model_validate(json.loads(case_file.read_text()))
    hidden_from_keras.update(UNUSED_BY_COMMANDS)
    try:
        measure_or_start_ranks(case, result_file)
    except UserError as error:
        print(f"mnist-dist: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure_or_start_ranks(case: Case, result_file: Path) -> None:
    """Measures as a rank, or in this process alone, or starts the ranks that do."""
    of_kind = cast(WorkerKind, kind(case.kind))
    config = load_config("default", training_settings(case, seed=0))
    cluster = find_cluster(os.environ)
    if cluster.launcher == "none" and not STRATEGIES[case.strategy].one_process:
        command = [sys.executable, "-m", of_kind.worker, *sys.argv[1:]]
        run_ranks(command, case.devices, strategy=case.strategy)
        return
    settings = resolve_strategy(config.runtime, cluster)
    watchdog = Watchdog(cluster, 2 * settings.join_timeout_seconds)  # As in a training.
    with watchdog, join_ranks(cluster, settings):
        runtime = configure_runtime(settings, config.seed, local_rank=cluster.local_rank, local_size=cluster.local_size)
        choose_form(settings, runtime)  # For the threads that training has.
        strategy = make_strategy(settings, cluster)
        watchdog.enter("preparing", settings.stall_timeout_seconds)
        with contextlib.closing(Turns(os.environ, cluster.rank, cluster.size, watchdog)) as turns:
            measurements = of_kind.measure(config, strategy, runtime, turns)
            if strategy.is_chief:
                write_json(result_file, measurements)
            strategy.barrier()


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except Exception:  # Such as TensorFlow's, when another rank has ended.
        with contextlib.suppress(OSError):
            traceback.print_exc()
    with contextlib.suppress(OSError):  # Who reads it may be gone, too.
        sys.stdout.flush()
    os._exit(code)  # Taking TensorFlow apart takes seconds, or waits for ranks that are gone.
