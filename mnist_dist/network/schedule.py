"""The learning rate of every step, as one array: what is logged, tested and trained with is the same number."""

import numpy as np

from mnist_dist.config import OptimizerConfig, ScheduleConfig

WARMUP_START = 1 / 25  # Of the peak, as in one-cycle schedules (Smith and Topin, "Super-convergence", 2017).
# What was tried, see docs/distributed.md: 8 times the learning rate at 8 times the batch. At 64 times, with a peak of
# 0.256, Adam learns nothing. It, AdamW and RMSprop move each weight by about the rate, whatever the gradient.
TRIED_SCALING, TRIED_ADAPTIVE_PEAK = 8, 0.1


def peak_learning_rate(config: ScheduleConfig, learning_rate: float, batch_size: int) -> float:
    """Scales the learning rate from the reference batch to the global batch.

    `linear` keeps the expected SGD update per image (Goyal et al., "Accurate, large minibatch SGD", 2017), `sqrt`
    keeps its variance, which suits adaptive optimizers (Malladi et al., "On the SDEs and scaling rules for adaptive
    gradient algorithms", 2022).
    """
    ratio = batch_size / config.reference_batch_size
    return learning_rate * {"none": 1.0, "sqrt": ratio**0.5, "linear": ratio}[config.scaling]


def doubt_peak(config: ScheduleConfig, optimizer: OptimizerConfig, batch_size: int) -> str | None:
    """Says so where the peak lies beyond what was tried, and what to do."""
    peak = peak_learning_rate(config, optimizer.learning_rate, batch_size)
    doubt = f"a peak learning rate of {peak:.3g} lies beyond what was tried"
    if peak > TRIED_SCALING * optimizer.learning_rate:
        return f"{doubt}, {TRIED_SCALING} times the base rate; if the loss stays high, set schedule.scaling=sqrt"
    if optimizer.name in ("adam", "adamw", "rmsprop") and peak > TRIED_ADAPTIVE_PEAK:
        return f"{doubt}, {TRIED_ADAPTIVE_PEAK} with {optimizer.name}; if the loss stays high, lower --learning-rate"
    return None


def learning_rates(config: ScheduleConfig, learning_rate: float, batch_size: int, total_steps: int) -> np.ndarray:
    """Returns the learning rate of each step, float32 [total_steps].

    The rate rises linearly from 1/25 of the peak during `warmup_percent` of the steps. Then it stays (constant), or
    falls to almost zero at the last step along a line (one_cycle) or half a cosine (cosine).
    """
    warmup_steps = int(total_steps * config.warmup_percent / 100)
    step = np.arange(total_steps, dtype=np.float64)
    rising = WARMUP_START + (1 - WARMUP_START) * step / max(warmup_steps, 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    after = {
        "constant": np.ones_like(step),
        "one_cycle": 1 - progress,
        "cosine": (1 + np.cos(np.pi * progress)) / 2,
    }[config.name]
    factor = np.where(step < warmup_steps, rising, after)
    return (peak_learning_rate(config, learning_rate, batch_size) * factor).astype(np.float32)
