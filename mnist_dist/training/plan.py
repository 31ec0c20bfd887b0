"""A run in steps: what users say in epochs ends here."""

from dataclasses import dataclass

from mnist_dist.config import Config
from mnist_dist.errors import UserError, counted

PROFILED_STEPS = 40  # Half of them, in which everything gets compiled, and then as many that are recorded.
MAX_STEPS = 10_000_000  # The table of learning rates has an entry for each.


@dataclass(frozen=True)
class Plan:
    train_images: int
    steps_per_epoch: int
    total_steps: int


def make_plan(config: Config, train_images: int) -> Plan:
    """Converts epochs to steps, `config.runtime.devices` being the number of replicas.

    Raises:
        UserError: the batch is larger than the training set or does not divide over the replicas, or the run would
            have too many steps, or too few for a profile, or replicas would learn apart in a run that leaves a model.
    """
    batch_size, replicas = config.training.batch_size, config.runtime.devices
    if batch_size > train_images:
        raise UserError(
            f"training.batch_size: received {batch_size}, expected at most the {train_images} training images."
        )
    parts = replicas * config.training.accumulation_steps
    if batch_size % parts:
        divisor = f"{replicas} replica{'s' if replicas > 1 else ''}" + (
            f" in {config.training.accumulation_steps} accumulation steps" if parts > replicas else ""
        )
        raise UserError(
            f"training.batch_size: received {batch_size} for {divisor}, expected a multiple of {parts}; "
            f"for example --batch-size {max(batch_size // parts, 1) * parts}."
        )
    if not config.runtime.all_reduce and config.training.measure_seconds is None:
        raise UserError(
            "runtime.all_reduce: received false, expected it together with training.measure_seconds only; "
            "replicas that do not share their gradients train no common model."
        )
    steps_per_epoch = train_images // batch_size
    total_steps = config.training.steps or config.training.epochs * steps_per_epoch
    if total_steps > MAX_STEPS:
        raise UserError(f"training: {total_steps:,} steps were asked for, expected at most {MAX_STEPS:,}.")
    if config.logging.profile and total_steps < PROFILED_STEPS:
        raise UserError(
            f"logging.profile: received for {counted(total_steps, 'step')}, expected at least {PROFILED_STEPS}."
        )
    return Plan(train_images, steps_per_epoch, total_steps)
