"""The story of the README with real parts: a pod's image is on the board, the uplink goes, and `Always` asks again."""

import signal
import time
import unittest

import lab

from lib import images, skopeo
from lib.process import Process, run, wait_until

IMAGE = "docker.io/lab/app:latest"
RELEASES = ("1.6", "2.x")


class Story(lab.Case):
    def begin(self):
        """A registry with an image, and a Larder in front of it."""
        self.app, self.big = images.built()
        registry = self.registry()
        registry.push(self.app, "1.0", "lab/app:latest")
        return registry, self.larder(registry)

    def test_uplink_gone_and_a_second_board_has_an_empty_store(self):
        registry, larder = self.begin()
        first = self.containerd("2.x", larder)
        # The `ctr` of 2.x takes the manifests of every platform, CRI only its own: what is asked for is what is kept.
        first.pull(IMAGE)
        first.cri_pull(IMAGE)
        registry.stop(signal.SIGKILL)
        # What kubelet does for each start of a pod whose policy is Always.
        self.assertTrue(first.cri_pull(IMAGE))
        for release in RELEASES:
            with self.subTest(containerd=release):
                second = self.containerd(release, larder)
                self.assertIsNone(second.digest(IMAGE))
                second.pull(IMAGE)
                self.assertEqual(second.digest(IMAGE), self.app.digest("1.0"))
                self.assertEqual(second.run_image(IMAGE), "1.0\n")
                third = self.containerd(release, larder)
                third.cri_pull(IMAGE)
                self.assertIn(f"docker.io/lab/app@{self.app.digest('1.0')}", third.cri_digests(IMAGE))
        self.assertEqual(larder.tier(), "larder; hit; detail=last-complete")
        self.check_blobs(larder)

    def test_each_way_for_an_uplink_to_go(self):
        registry, larder = self.begin()
        self.containerd("2.x", larder).cri_pull(IMAGE)
        drop = ("INPUT", "-i", "lo", "-p", "tcp", "--dport", registry.port, "-j", "DROP")

        def cut():
            run("iptables", "-I", *drop)
            self.addCleanup(run, "iptables", "-D", *drop, check=False)

        ways = {
            "killed": (lambda: registry.stop(signal.SIGKILL), registry.start),
            "held": (lambda: registry.send(signal.SIGSTOP), lambda: registry.send(signal.SIGCONT)),
            "dropped": (cut, lambda: run("iptables", "-D", *drop)),
        }
        for way, (go, come_back) in ways.items():
            with self.subTest(way=way):
                go()
                began = time.monotonic()
                status, headers, took = larder.ask("/v2/lab/app/manifests/latest?ns=docker.io")
                self.assertEqual((status, headers["Cache-Status"]), (200, "larder; hit; detail=last-complete"))
                self.assertIn("299", headers["Warning"])
                # The deadline is 1.5 s; the rest is what a busy machine may add.
                self.assertLess(took, 5)
                board = self.containerd("2.x", larder)
                board.cri_pull(IMAGE)
                print(f"uplink {way}: first answer in {took * 1000:.0f} ms, "
                      f"an empty containerd had the image after {time.monotonic() - began:.1f} s")
                come_back()
                began = time.monotonic()
                wait_until("the registry's return", lambda: larder.tier().endswith("upstream"))
                print(f"uplink {way}: back online after {time.monotonic() - began:.1f} s")

    def test_the_tag_moves_while_online(self):
        registry, larder = self.begin()
        for release in RELEASES:
            with self.subTest(containerd=release):
                registry.push(self.app, "1.0", "lab/app:latest")
                board = self.containerd(release, larder)
                board.cri_pull(IMAGE)
                self.assertIn(f"docker.io/lab/app@{self.app.digest('1.0')}", board.cri_digests(IMAGE))
                registry.push(self.app, "1.1", "lab/app:latest")
                board.cri_pull(IMAGE)
                self.assertIn(f"docker.io/lab/app@{self.app.digest('1.1')}", board.cri_digests(IMAGE))
        registry.stop(signal.SIGKILL)
        board.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{self.app.digest('1.1')}", board.cri_digests(IMAGE))
        (newest, before) = larder.says("history", IMAGE)["versions"]
        self.assertEqual((newest["digest"], newest["seen"], newest["served_offline"]), (self.app.digest("1.1"), True, True))
        self.assertEqual((before["digest"], before["state"]), (self.app.digest("1.0"), "complete"))

    def test_a_version_that_was_half_fetched_does_not_hide_the_one_before(self):
        registry, larder = self.begin()
        board = self.containerd("2.x", larder)
        board.cri_pull(IMAGE)
        larder.stop()
        # So slow that the uplink can go in the middle of a layer.
        text = larder.config.read_text()
        larder.config.write_text(text + '[fetch]\nbandwidth = "8Mbit"\n')
        larder.start()
        registry.push(self.big, "1.0", "lab/app:latest")
        pulling = Process(
            "ctr",
            [board.ctr_program, "-a", board.socket, "images", "pull", "--hosts-dir", board.hosts, IMAGE],
            board.folder,
        )
        self.start(pulling)
        wait_until("a layer on its way", lambda: list((larder.data / "staging").glob("sha256-*")))
        registry.stop(signal.SIGKILL)
        pulling.stop(signal.SIGKILL)
        wait_until("the last complete version", lambda: larder.tier().endswith("last-complete"))
        other = self.containerd("1.6", larder)
        other.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{self.app.digest('1.0')}", other.cri_digests(IMAGE))
        # When the uplink is back, what had begun goes on, and the new version is served.
        larder.stop()
        larder.config.write_text(text)
        larder.start()
        registry.start()
        wait_until("the registry's return", lambda: larder.tier().endswith("upstream"))
        other.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{self.big.digest('1.0')}", other.cri_digests(IMAGE))
        self.check_blobs(larder)

    def test_killed_in_the_middle_of_a_pull(self):
        self.app, self.big = images.built()
        registry = self.registry()
        registry.push(self.big, "1.0", "lab/big:1.0")
        larder = self.larder(registry, '[fetch]\nbandwidth = "40Mbit"\n')
        pulling = self.start(
            Process(
                "skopeo",
                skopeo.copy_command(skopeo.on_loopback(larder.port, "lab/big:1.0"), f"dir:{self.folder}/never"),
                self.folder,
            )
        )

        def staged():
            return max((file.stat().st_size for file in (larder.data / "staging").glob("sha256-*")), default=0)

        # More than the small layers have, so that it is a large one that is cut.
        wait_until("two megabytes of a layer", lambda: staged() > 2_000_000)
        larder.stop(signal.SIGKILL)
        pulling.stop(signal.SIGKILL)
        before = registry.bytes_sent("/blobs/")
        larder.start()
        board = self.containerd("2.x", larder)
        board.cri_pull("docker.io/lab/big:1.0")
        self.check_blobs(larder)
        self.assertTrue(
            any(status == 206 for _, _, status, _ in registry.requests()), "a layer is resumed and not begun anew"
        )
        wanted = self.big.bytes_for("1.0")
        sent = registry.bytes_sent("/blobs/")
        print(f"killed in mid-pull: {before} bytes before, {sent} in all for an image of {wanted}")
        # What was in flight in sockets when it died is lost; what was in the file is not fetched again.
        self.assertLess(sent, wanted * 1.3)


if __name__ == "__main__":
    unittest.main()
