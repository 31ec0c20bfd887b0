"""Prints what the package requires for CPUs or GPUs: requirements.py SETUP_CFG cpu|gpu."""

import configparser
import sys
from pathlib import Path

file, variant = sys.argv[1:]
if variant not in ("cpu", "gpu"):
    sys.exit(f"VARIANT: received '{variant}', expected cpu or gpu.")
setup = configparser.ConfigParser()
setup.read_string(Path(file).read_text(encoding="utf-8"))
print(setup["options"]["install_requires"].strip())
if variant == "gpu":
    print(setup["options.extras_require"]["gpu"].strip())
