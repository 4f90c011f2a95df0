"""A test that is made of real parts: registries and Larders, each in a folder of its own, which end with the test."""

import sys

from lib import scratch
from lib.docker_registry import Registry
from lib.larder import Larder


class Case(scratch.Case):
    """A test with parts. When it fails, what they printed is shown."""

    def setUp(self):
        super().setUp()
        self.parts = []
        self.addCleanup(self.stop_parts)

    def stop_parts(self):
        outcome = self._outcome.result
        failed = any(self.id() == test.id() for test, _ in [*outcome.failures, *outcome.errors])
        for part in reversed(self.parts):
            part.stop()
            if failed and hasattr(part, "log"):
                print(f"--- {part.name}:\n{part.log()[-6000:]}", file=sys.stderr)

    def start(self, part):
        """Has a part end with the test."""
        self.parts.append(part)
        return part

    def new_folder(self, name):
        """A folder for the next part."""
        folder = self.folder / f"{name}-{len(self.parts)}"
        folder.mkdir()
        return folder

    def registry(self, **options):
        return self.start(Registry(self.new_folder("registry"), **options))

    def larder(self, upstreams, more="", **options):
        """A Larder; a registry in place of upstreams stands for docker.io."""
        if isinstance(upstreams, Registry):
            upstreams = {"docker.io": {"url": upstreams.url}}
        return self.start(Larder(self.new_folder("larder"), upstreams, more, **options))
