"""A process that measures one case which is no training: the input pipeline, all-reduces, or matrix products.

    python -m mnist_dist.benchmarks.measure.worker CASE_FILE RESULT_FILE

Started once, it starts one process per device where the strategy needs them; started by `srun`, it is one of them.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_dist.benchmarks.measure.suite import training_settings
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.config import Config, load_config, read_yaml
from mnist_dist.data.dataset import load_arrays, make_train_dataset
from mnist_dist.distributed.cluster import find_cluster
from mnist_dist.distributed.launch import join_ranks, run_ranks
from mnist_dist.distributed.strategies.interface import Strategy, all_gather
from mnist_dist.distributed.strategies.resolve import make_strategy, resolve_strategy
from mnist_dist.errors import UserError
from mnist_dist.files import write_json
from mnist_dist.loops import repeat
from mnist_dist.network.forward import choose_form
from mnist_dist.runtime import Runtime, configure_runtime
from mnist_dist.strategies import STRATEGIES

if TYPE_CHECKING:
    import tensorflow as tf

WINDOW_SECONDS = 0.1
COLLECTIVE_SECONDS = 0.05  # Of each timing; there are many sizes.
INPUT_SECONDS = 4.0  # About forty windows, or twenty where they are joined in pairs.
MATMUL_SIZE = 2048
MATMUL_TIMINGS = COLLECTIVE_TIMINGS = 10
MESSAGE_BYTES = tuple(4 * 8**exponent for exponent in range(9))  # 4 B to 64 MiB.


def main(arguments: Sequence[str] | None = None) -> int:
    case_file, result_file = (Path(argument) for argument in arguments or sys.argv[1:])
    case = Case.model_validate(read_yaml(case_file.read_text(), str(case_file)))
    try:
        measure_or_start_ranks(case, result_file)
    except UserError as error:
        print(f"mnist-dist: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure_or_start_ranks(case: Case, result_file: Path) -> None:
    """Measures as a rank, or in this process alone, or starts the ranks that do."""
    config = load_config("default", training_settings(case, seed=0))
    cluster = find_cluster(os.environ)
    if cluster.launcher == "none" and not STRATEGIES[case.strategy].one_process:
        command = [sys.executable, "-m", "mnist_dist.benchmarks.measure.worker", *sys.argv[1:]]
        run_ranks(command, case.devices, strategy=case.strategy)
        return
    settings = resolve_strategy(config.runtime, cluster)
    with join_ranks(cluster, settings):
        runtime = configure_runtime(settings, config.seed, local_rank=cluster.local_rank, local_size=cluster.local_size)
        choose_form(settings, runtime)  # For the threads that training has.
        strategy = make_strategy(settings, cluster)
        measurements = MEASURE[case.kind](config, strategy, runtime)
        if strategy.is_chief:
            write_json(result_file, measurements)
        strategy.barrier()


def measure_input(config: Config, strategy: Strategy, runtime: Runtime) -> dict[str, Any]:
    """Reads training batches and does nothing with them."""
    import tensorflow as tf

    arrays = load_arrays(config.data)
    batches = strategy.distribute(
        lambda shard: make_train_dataset(
            arrays.train_images,
            arrays.train_labels,
            batch_size=config.training.batch_size,
            seed=config.seed,
            shard=shard,
            shift_pixels=config.data.shift_pixels,
        )
    )

    @tf.function(autograph=False)
    def read(count: tf.Tensor) -> tf.Tensor:
        def step(_: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
            images, labels = batches.get_next()
            return total + labels[0] + tf.cast(images[0, 0, 0, 0], tf.int32)  # So that it is not optimised away.

        return repeat(count, step, tf.constant(0))

    def run(count: int) -> Any:
        return read(tf.constant(count)).numpy()

    steps = calibrate(run, strategy)
    windows: list[float] = []
    while float(all_gather(strategy, [sum(windows)]).min()) < INPUT_SECONDS:  # Until the fastest rank has had enough.
        windows.append(seconds_of(functools.partial(run, steps)))
    return {"window_steps": [steps] * len(windows), "window_seconds": all_gather(strategy, windows).tolist()}


def measure_collectives(config: Config, strategy: Strategy, runtime: Runtime) -> dict[str, Any]:
    """Sums messages of growing sizes over all replicas, one all-reduce after the other."""
    import tensorflow as tf

    def make_reduce_many(size: int) -> Callable[[int], Any]:
        with strategy.scope():  # So that each replica finds the message on its own device.
            message = tf.Variable(tf.ones([size // 4]), trainable=False)

        def reduce_once(before: tf.Tensor) -> tf.Tensor:
            with tf.control_dependencies([before]):  # Each begins when the one before has ended.
                return strategy.reduce(tf.identity(message))[0]

        def step(_: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
            befores = tf.fill([strategy.shard.local_replicas], last)
            return strategy.local_sum(strategy.run(reduce_once, (befores,)))

        @tf.function(autograph=False)
        def reduce_many(calls: tf.Tensor) -> tf.Tensor:
            return repeat(calls, step, tf.zeros([]))

        return lambda calls: reduce_many(tf.constant(calls)).numpy()

    messages = []
    for size in MESSAGE_BYTES:
        run = make_reduce_many(size)
        calls = calibrate(run, strategy, COLLECTIVE_SECONDS)
        timings = [seconds_of(functools.partial(run, calls)) for _ in range(COLLECTIVE_TIMINGS)]
        messages.append({"bytes": size, "calls": calls, "seconds": all_gather(strategy, timings).tolist()})
    return {"messages": messages}


def measure_matmul(config: Config, strategy: Strategy, runtime: Runtime) -> dict[str, Any]:
    """Multiplies square matrices in the type that training computes in."""
    import keras
    import tensorflow as tf

    dtype = keras.dtype_policies.get(runtime.precision.value).compute_dtype
    left, right = (tf.cast(tf.random.normal([MATMUL_SIZE, MATMUL_SIZE], seed=seed), dtype) for seed in (0, 1))

    def step(_: tf.Tensor, product: tf.Tensor) -> tf.Tensor:
        return tf.matmul(product, right) / MATMUL_SIZE**0.5  # Keeps its scale, and is 1/2048 of the work.

    @tf.function(autograph=False)
    def multiply(count: tf.Tensor) -> tf.Tensor:
        return repeat(count, step, left)[0, 0]

    def run(count: int) -> Any:
        return multiply(tf.constant(count)).numpy()

    count = calibrate(run, strategy)
    rates = [2 * MATMUL_SIZE**3 * count / seconds_of(functools.partial(run, count)) for _ in range(MATMUL_TIMINGS)]
    return {"size": MATMUL_SIZE, "dtype": dtype, "flops_per_second": rates}


def calibrate(run: Callable[[int], Any], strategy: Strategy, wanted_seconds: float = WINDOW_SECONDS) -> int:
    """Returns how many repetitions take so long, the same on all ranks."""
    run(1)  # Traces and compiles.
    count = 1
    while True:
        seconds = float(all_gather(strategy, [seconds_of(functools.partial(run, count))]).max())
        if seconds >= wanted_seconds:
            return count
        count = max(2 * count, min(int(1.2 * count * wanted_seconds / seconds), 100 * count))


def seconds_of(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


MEASURE: dict[str, Callable[[Config, Strategy, Runtime], dict[str, Any]]] = {
    "input": measure_input,
    "collectives": measure_collectives,
    "matmul": measure_matmul,
}

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # Taking TensorFlow apart takes seconds.
