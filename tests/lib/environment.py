"""Files and folders that tests/run hands to a test by a variable of the environment."""

import os
import pathlib
import sys


def path(name):
    """The path that a variable holds. Without it no test can be run."""
    return pathlib.Path(os.environ.get(name) or sys.exit(f"{name} names no file: run tests/run")).absolute()


def seed():
    """What a throw of dice begins with: LARDER_SEED repeats an earlier one."""
    return int(os.environ.get("LARDER_SEED") or os.getpid())
