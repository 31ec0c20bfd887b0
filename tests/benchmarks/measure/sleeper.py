"""A contender that sleeps instead of computing:  sleeper.py SECONDS [--half=VARIANT] [--train=STEPS] ..."""

import argparse
import os
import threading
import time

from mnist_dist.distributed.turns import join_turns

parser = argparse.ArgumentParser()
parser.add_argument("seconds", type=float)
parser.add_argument("--half", help="a variant that takes half of the time")
parser.add_argument("--train", type=int, default=0, help="steps of a training before it is measured")
parser.add_argument("--spin", action="store_true", help="use half a core meanwhile")
parser.add_argument("--die", choices=("before", "after"))
parser.add_argument("--hang", choices=("before", "after"))
parser.add_argument("--memory", action="store_true")
args = parser.parse_args()


def misbehave(when: str) -> None:
    if args.hang == when:
        time.sleep(1000)
    if args.die == when:
        print(f"ValueError: {when}", flush=True)
        os._exit(7)


def spin() -> None:
    while True:
        began = time.process_time()
        while time.process_time() - began < 0.05:
            pass
        time.sleep(0.05)


def take(steps: int, variant: str) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        time.sleep(args.seconds / (2 if variant == args.half else 1))
    return time.perf_counter() - began


misbehave("before")
if args.spin:
    threading.Thread(target=spin, daemon=True).start()
with join_turns(os.environ, 0, 1) as turns:
    assert turns is not None
    left, taken, turns.is_training = args.train, 0, args.train > 0
    while turn := turns.wait():
        steps = min(turn.steps, left) if turns.is_training else turn.steps
        take(turn.lead, turn.variant)
        seconds = take(steps, turn.variant)
        left, taken = left - steps, taken + 1
        turns.is_training = left > 0
        if taken == 3:
            misbehave("after")
            if args.memory:
                print("MemoryError", flush=True)
                os._exit(7)
        turns.done(steps, seconds)
