"""How to read the report: what each of its words means, how it is computed, and who defined it so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_dist.benchmarks.report.sections import Section
    from mnist_dist.benchmarks.report.table import Table


@dataclass(frozen=True)
class Definition:
    """What a word means; `shown_with` is a section, a picture, or a column or group of columns of the main table."""

    term: str
    shown_with: str
    text: str
    source: str = ""


DEFINITIONS = (
    Definition(
        "images/s",
        "Throughput",
        "Images of all ranks over the time of the slowest one, in the steady part of a run: total images over total "
        "time, not a mean of rates. Per device: the same over the number of devices. In brackets or below: the 95 % "
        "interval and the number of runs, each a fresh process.",
        "Interval: Student's, from the variance of the logarithms between runs, no less than blocks of windows explain "
        "(two levels: Kalibera and Jones, Rigorous benchmarking in reasonable time, ISMM 2013).",
    ),
    Definition(
        "steady, unstable",
        "Throughput",
        "Warm-up is an initial stretch, of at most a fifth of the windows, that is slower than nine tenths of the "
        "later ones. What comes later counts, also where a clock is throttled for a while. A run whose step time "
        "drifts throughout has not settled. It counts like the others, without its warm-up; but where half of the "
        "runs of a case or more have not settled, or one is too short to tell, the case is unstable and gets no "
        "throughput.",
        "The end of the warm-up: CUSUM (Page, Biometrika 41, 1954); drift: Theil and Sen, Mann and Kendall.",
    ),
    Definition(
        "efficiency",
        "Scaling efficiency",
        "E(N) = X(N) / (N · X(1)), X being total images/s and X(1) that of the strategy single on one device with the "
        "cores that a device has at N. Weak: each device keeps its batch. Strong: the devices share the batch of one. "
        "Where cases took turns, the ratio is the trimmed mean of those within each cycle; its interval comes from "
        "blocks of cycles, and from the rounds where there are several. Otherwise both are taken to be independent.",
        "Hoefler and Belli, Scientific benchmarking of parallel computing systems, SC 2015.",
    ),
    Definition(
        "oversubscribed",
        "Scaling efficiency",
        "The devices of a host were promised more cores than it has, so they wait for each other's.",
    ),
    Definition(
        "test accuracy",
        "Accuracy",
        "Share of the test images that the saved float32 model reads correctly: the mean over seeds, the lowest and "
        "the highest seed.",
    ),
    Definition(
        "time to accuracy",
        "Time to accuracy",
        "Training, and the evaluations that decide it, from the first step on, tracing included. The median is over "
        "all n runs, one that misses the target taking for ever; k of n reached it; the expected running time is the "
        "time of all n runs over k. A run that failed counts from its first step on, too: its start-up is taken to be "
        "as long as that of the others.",
        "ERT: Hansen et al., COCO/BBOB.",
    ),
    Definition(
        "step time",
        "Step time, slowest rank",
        "Wall time between two synchronised edges of a window over its steps, of the slowest rank in each window; p50, "
        "p95 and p99 are percentiles over the steady windows of all runs.",
    ),
    Definition(
        "first step, start-up",
        "Start",
        "First step: tracing, compiling and running it. Start-up: from the start of the process to its first step.",
    ),
    Definition(
        "memory",
        "memory",
        "The largest resident set of a process at any time, of the rank where it is largest. GPU memory: the same of "
        "what TensorFlow allocates on a GPU.",
    ),
    Definition(
        "MFU",
        "MFU",
        "FLOPs per second over the matrix-multiply rate measured on the same devices at the same precision (all work "
        "over all time; of N devices: N times that of one, unless N were measured). Counted are the multiplications "
        "and additions of convolutions and dense layers in one training step: forward, gradients of weights and of "
        "activations, all as dense products, even where kernels leave out products with zero.",
        "After Chowdhery et al., PaLM, 2022, with the measured instead of the nominal peak.",
    ),
    Definition(
        "power, images/J",
        "power",
        "Mean power of the busy part, of all GPUs of the case (NVML) or of the host's processors (RAPL), and images "
        "per joule of that.",
    ),
    Definition(
        "algbw, busbw",
        "all_reduce",
        "All-reduce of S bytes in t seconds over N ranks: algbw = S / t; busbw = algbw · 2 (N - 1) / N, what each "
        "rank's link carries. Small messages are given as latency.",
        "NVIDIA, nccl-tests, doc/PERFORMANCE.md.",
    ),
    Definition(
        "lost time",
        "losses",
        "Per step, against one device; mean times as trained, on resident images (synthetic input), and without "
        "all-reduce, in which ranks run freely. Input: what real input adds at N, less what it adds at 1. Exposed "
        "communication: what leaving out the all-reduce gains, at most what one takes by itself, if that was measured. "
        "Interaction (input beside communication): what leaving out both gains beyond each alone. Stragglers: "
        "that rank less the mean of ranks. Contention for memory, cores, power: this mean less one device's step. "
        "Small batches, in strong scaling: what one device loses with the images that each of N has. Unexplained: what "
        "these leave of the loss 1 - E(N): what was not measured, and noise where its interval holds zero. "
        "Percentages are of the ideal throughput.",
    ),
    Definition(
        "prediction",
        "prediction",
        "Three models are fitted to the measured points: step times with a ring all-reduce, t = 2 (N - 1) a + "
        "2 (N - 1) / N · S · b; the universal scalability law (USL), X(N) = l N / (1 + s (N - 1) + k N (N - 1)); and "
        "Amdahl's law, k = 0. Each is also fitted without the largest N, and its error there is printed; the best is "
        "trusted.",
        "Gunther, Guerrilla capacity planning, 2007; ring: Thakur et al., IJHPCA 2005.",
    ),
)


def needed_definitions(table: Table, sections: Sequence[Section]) -> list[Definition]:
    """Returns those of what a report shows."""
    shown = {section.name for section in sections} | {
        name for each in table.columns for name in (each.head, each.group)
    }
    return [definition for definition in DEFINITIONS if definition.shown_with in shown]
