"""Folders that are removed: one for all tests of a run, and one in it for each test."""

import atexit
import pathlib
import shutil
import tempfile
import unittest

FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="larder-test-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def new(prefix="t"):
    """A new folder. The name is short: a Unix socket's path has at most 107 bytes."""
    return pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=FOLDER))


class Case(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self):
        self.folder = new()
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
