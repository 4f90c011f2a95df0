"""A registry behind an ingress whose pod comes and goes."""

import filecmp
import signal
import unittest

import lab

from lib import images, skopeo
from lib.process import wait_until


class Ingress(lab.Case):
    def setUp(self):
        super().setUp()
        self.app, _ = images.built()
        self.pod = self.registry()
        self.pod.push(self.app, "1.0", "lab/app:latest")
        self.ingress = self.start(lab.Ingress(self.new_folder("ingress"), self.pod))
        self.board = self.larder({"docker.io": {"url": self.ingress.url}})

    def copy(self, port, reference="lab/app:latest"):
        """skopeo's exit status, what it says, and what it has."""
        folder = self.new_folder(f"copy-{port}-{len(list(self.folder.iterdir()))}")
        done = skopeo.copy(skopeo.on_loopback(port, reference), f"dir:{folder}", check=False)
        return done.returncode, done.stderr, folder

    def same(self, one, other):
        """Two copies are the same, byte for byte."""
        names = sorted(path.name for path in one.iterdir())
        self.assertEqual(names, sorted(path.name for path in other.iterdir()))
        _, different, strange = filecmp.cmpfiles(one, other, names, shallow=False)
        self.assertEqual((different, strange), ([], []))

    def test_the_pod_is_down_and_comes_back(self):
        status, _, straight = self.copy(self.ingress.port)
        self.assertEqual(status, 0)
        status, told, through = self.copy(self.board.port)
        self.assertEqual(status, 0, told)
        self.same(straight, through)

        self.pod.stop(signal.SIGKILL)
        status, told, _ = self.copy(self.ingress.port)
        self.assertNotEqual(status, 0, "straight it does not exist")
        before = len(self.ingress.asked("/manifests/latest"))
        for _ in range(3):
            status, told, cached = self.copy(self.board.port)
            self.assertEqual(status, 0, told)
            self.same(straight, cached)
        self.assertTrue(self.board.tier().endswith("last-complete"), self.board.log())
        asked = self.ingress.asked("/manifests/latest")[before:]
        self.assertEqual([row for row in asked if row[0] == "GET"], [("GET", 404)], "a GET has confirmed it, once")
        status, told, _ = self.copy(self.board.port, "lab/app:other")
        self.assertNotEqual(status, 0)
        self.assertIn("answered 404 but not as a registry does", told + self.board.log())

        self.pod.start()
        self.pod.push(self.app, "1.1", "lab/app:latest")
        wait_until("upstream's answer", lambda: self.board.tier().endswith(("upstream", "uri-miss")))
        status, told, moved = self.copy(self.board.port)
        self.assertEqual(status, 0, told)
        self.same(self.copy(self.ingress.port)[2], moved)
        # What the registry itself does not have is missing, and not an outage.
        self.assertEqual(self.board.tier(tag="other"), "404")
        self.check_blobs(self.board)


if __name__ == "__main__":
    unittest.main()
