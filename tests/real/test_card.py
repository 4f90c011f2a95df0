"""The card: full, read-only, and how much is written to it. Nothing is lost, and what is there is served."""

import pathlib
import signal
import time
import unittest

import lab

from lib import images
from lib.loop_disk import LoopDisk
from lib.process import run, wait_until

IMAGE = "docker.io/lab/app:latest"


class Card(lab.Case):
    def small_disk(self, size):
        """A file system of its own on a loop device."""
        disk = LoopDisk(self.new_folder("disk"), size)
        self.addCleanup(disk.remove)
        return disk

    def written(self, disk):
        """Bytes that have been written to the device so far, all that waits in memory included."""
        run("sync", "-f", disk.mount)
        device = disk.device.removeprefix("/dev/")
        return int(pathlib.Path(f"/sys/block/{device}/stat").read_text().split()[6]) * 512

    def test_a_disk_that_is_too_small_and_one_that_neighbours_fill(self):
        app, big = images.built()
        disk = self.small_disk("20M")
        registry = self.registry()
        registry.push(app, "1.0", "lab/app:latest")
        registry.push(big, "1.0", "lab/big:1.0")
        larder = self.larder(registry, '[disk]\nmin_free = "2MiB"\n', data=disk.mount / "larder")
        board = self.containerd("2.x", larder)
        board.cri_pull(IMAGE)

        # What the disk is too small for is served and not stored.
        board.cri_pull("docker.io/lab/big:1.0")
        self.assertIn(f"docker.io/lab/big@{big.digest('1.0')}", board.cri_digests("docker.io/lab/big:1.0"))
        self.assertIn("is streamed and not stored", larder.log())
        self.assertEqual([image["state"] for image in larder.says("ls")], ["complete", "partial"])
        # A neighbour takes the rest.
        run("sh", "-c", f"cat /dev/zero > {disk.mount}/neighbour || true")
        registry.push(app, "1.1", "lab/app:latest")
        status, headers, _ = larder.ask("/v2/lab/app/manifests/latest?ns=docker.io")
        self.assertIn(headers.get("Docker-Content-Digest"), (app.digest("1.0"), app.digest("1.1")))
        registry.stop(signal.SIGKILL)
        other = self.containerd("1.6", larder)
        other.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{app.digest('1.0')}", other.cri_digests(IMAGE))
        # It starts on a full disk too, and there is room again once the neighbour has gone.
        larder.stop()
        larder.start()
        wait_until("the last complete version", lambda: larder.tier().endswith("last-complete"))
        (disk.mount / "neighbour").unlink()
        registry.start()
        wait_until("the registry's return", lambda: larder.tier().endswith("upstream"))
        other.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{app.digest('1.1')}", other.cri_digests(IMAGE))
        self.check_blobs(larder)

    def test_a_disk_that_takes_no_changes_any_more(self):
        app, _ = images.built()
        disk = self.small_disk("64M")
        registry = self.registry()
        registry.push(app, "1.0", "lab/app:latest")
        larder = self.larder(registry, '[disk]\nmin_free = "2MiB"\n', data=disk.mount / "larder")
        self.containerd("2.x", larder).cri_pull(IMAGE)
        larder.stop()
        # What ext4 does to itself after an error.
        disk.remount("ro")
        larder.start()
        self.assertIn("is read-only", larder.log())
        registry.push(app, "1.1", "lab/app:latest")
        board = self.containerd("2.x", larder)
        board.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{app.digest('1.1')}", board.cri_digests(IMAGE))
        self.assertIn("served and not stored", larder.log())
        registry.stop(signal.SIGKILL)
        other = self.containerd("1.6", larder)
        other.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{app.digest('1.0')}", other.cri_digests(IMAGE))
        self.assertEqual(larder.stop(), 0)
        # Mended: everything is as it was, and the new version is kept.
        disk.remount("rw")
        registry.start()
        larder.start()
        wait_until("the registry's return", lambda: larder.tier().endswith("upstream"))
        self.containerd("2.x", larder).cri_pull(IMAGE)
        self.assertEqual([image["state"] for image in larder.says("ls")], ["complete"])
        self.check_blobs(larder)

    def test_how_much_is_written(self):
        app, big = images.built()
        registry = self.registry()
        registry.push(app, "1.0", "lab/app:latest")
        registry.push(big, "1.0", "lab/big:1.0")
        print("\n| cache | cached | written | written per byte cached |\n|---|---|---|---|")
        for name in ("larder", "docker-registry"):
            disk = self.small_disk("512M")
            if name == "larder":
                cache = self.larder(registry, '[disk]\nmin_free = "2MiB"\n', data=disk.mount / "larder")
            else:
                cache = self.registry(data=disk.mount / "registry", proxy=registry.url)
            # One that has been in use: folders and files that are made once are there.
            board = self.containerd("2.x", cache)
            board.cri_pull(IMAGE)
            self.wait_for_bytes(disk, app.bytes_for("1.0"))
            before, had = self.written(disk), self.stored(disk)
            board.cri_pull("docker.io/lab/big:1.0")
            self.wait_for_bytes(disk, big.bytes_for("1.0"))
            cache.stop()
            stored, written = self.stored(disk) - had, self.written(disk) - before
            print(f"| {name} | {stored / 1e6:.1f} MB | {written / 1e6:.2f} MB | {written / stored:.3f} |")
            self.assertGreater(stored, 10_000_000)
            if name == "larder":
                self.assertLess(written / stored, 1.1)

    def wait_for_bytes(self, disk, wanted):
        """Both caches store beside the answer; what images share is stored once."""
        wait_until("the cache", lambda: self.stored(disk) >= wanted * 0.98)

    def stored(self, disk):
        """Bytes of content on it, in either layout."""
        files = [path for path in disk.mount.rglob("*") if path.is_file() and "blobs" in path.parts]
        return sum(path.stat().st_size for path in files)

    def test_a_thousand_warm_pulls_and_an_idle_minute(self):
        app, _ = images.built()
        registry = self.registry()
        registry.push(app, "1.0", "lab/app:latest")
        disk = self.small_disk("64M")
        larder = self.larder(registry, '[disk]\nmin_free = "2MiB"\n', data=disk.mount / "larder")
        self.containerd("2.x", larder).cri_pull(IMAGE)
        before = self.written(disk)
        for _ in range(1000):
            status, headers, _ = larder.ask("/v2/lab/app/manifests/latest?ns=docker.io")
            self.assertEqual(status, 200)
            digest = headers["Docker-Content-Digest"]
            self.assertEqual(larder.ask(f"/v2/lab/app/manifests/{digest}?ns=docker.io", "GET")[0], 200)
        larder.stop()
        pulls = self.written(disk) - before
        larder.start()
        self.assertEqual(larder.ask("/v2/lab/app/manifests/latest?ns=docker.io")[0], 200)
        # The batch of uses, at most once a minute.
        time.sleep(65)
        before = self.written(disk)
        time.sleep(60)
        idle = self.written(disk) - before
        print(f"\n1,000 warm pulls and an orderly end: {pulls / 1e3:.0f} kB written; an idle minute: {idle / 1e3:.1f} kB")
        self.assertLess(pulls, 1_000_000)
        self.assertLess(idle, 1_000_000 / 1440 * 10)


if __name__ == "__main__":
    unittest.main()
