"""A peer that sleeps instead of training, with the clock of all peers:  sleeper.py OUT MODE SECONDS [DIE_AT_STEP]"""

import os
import sys
import time
from pathlib import Path

from mnist_dist.benchmarks.peers.scripts.script import Clock

out, mode, seconds, die_at = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int((sys.argv[4:] or ["0"])[0])
clock = Clock(mode)
clock.start()
while not clock.after_step(128, lambda: None):
    time.sleep(seconds)
    if clock.step == die_at:
        print("ValueError: of the sleeper", flush=True)
        os._exit(7)
    if mode == "accuracy" and clock.step % 20 == 0 and clock.after_evaluation(clock.step / 101):
        break
clock.write(out, device="CPU", precision="float32", sleeper="1")
