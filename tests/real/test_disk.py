"""A disk that is full: a clear refusal, nothing lost, and what is there is served."""

import pathlib
import signal
import tempfile
import time
import unittest

import lab

IMAGE = "docker.io/lab/app:latest"


class Disk(lab.Case):
    def small_disk(self, size):
        """A file system of its own on a loop device."""
        folder = pathlib.Path(tempfile.mkdtemp(prefix="disk", dir=self.folder))
        image, mount = folder / "image", folder / "mount"
        mount.mkdir()
        lab.run("truncate", "--size", size, image)
        # All of it is written now, and not by the kernel beside what is measured.
        lab.run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
        lab.run("mount", "-o", "loop", image, mount)
        self.addCleanup(lab.run, "umount", "-l", mount, check=False)
        return mount

    def written(self, mount):
        """Bytes that have been written to the device below a mount so far, all that waits in memory included."""
        lab.run("sync", "-f", mount)
        device = lab.run("findmnt", "-no", "SOURCE", mount).stdout.strip().removeprefix("/dev/")
        return int(pathlib.Path(f"/sys/block/{device}/stat").read_text().split()[6]) * 512

    def test_a_disk_that_is_too_small_and_one_that_neighbours_fill(self):
        app, big = lab.built_images()
        mount = self.small_disk("20M")
        registry = self.registry()
        registry.push(app, "1.0", "lab/app:latest")
        registry.push(big, "1.0", "lab/big:1.0")
        larder = self.larder(registry, '[disk]\nmin_free = "2MiB"\n', data=mount / "larder")
        board = self.containerd("2.x", larder)
        board.cri_pull(IMAGE)

        # What the disk is too small for is passed on and not kept.
        board.cri_pull("docker.io/lab/big:1.0")
        self.assertIn(f"docker.io/lab/big@{big.digest('1.0')}", board.cri_digests("docker.io/lab/big:1.0"))
        self.assertIn("is streamed through and not kept", larder.log())
        self.assertEqual([image["state"] for image in larder.says("ls")], ["complete", "partial"])
        # A neighbour takes the rest.
        lab.run("sh", "-c", f"cat /dev/zero > {mount}/neighbour || true")
        registry.push(app, "1.1", "lab/app:latest")
        status, headers, _ = larder.ask("/v2/lab/app/manifests/latest?ns=docker.io")
        self.assertIn(headers.get("Docker-Content-Digest"), (app.digest("1.0"), app.digest("1.1")))
        registry.stop(signal.SIGKILL)
        other = self.containerd("1.6", larder)
        other.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{app.digest('1.0')}", other.cri_digests(IMAGE))
        # It starts on a full disk too, and there is room again once the neighbour has gone.
        larder.stop()
        larder.restart()
        lab.wait_until("the last complete version", lambda: larder.tier().endswith("last-complete"))
        (mount / "neighbour").unlink()
        registry.restart()
        lab.wait_until("the registry's return", lambda: larder.tier().endswith("upstream"))
        other.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{app.digest('1.1')}", other.cri_digests(IMAGE))
        self.check_blobs(larder)

    def test_a_disk_that_takes_no_changes_any_more(self):
        app, _ = lab.built_images()
        mount = self.small_disk("64M")
        registry = self.registry()
        registry.push(app, "1.0", "lab/app:latest")
        larder = self.larder(registry, '[disk]\nmin_free = "2MiB"\n', data=mount / "larder")
        self.containerd("2.x", larder).cri_pull(IMAGE)
        larder.stop()
        # What ext4 does to itself after an error.
        lab.run("mount", "-o", "remount,ro", mount)
        larder.restart()
        self.assertIn("is read-only", larder.log())
        registry.push(app, "1.1", "lab/app:latest")
        board = self.containerd("2.x", larder)
        board.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{app.digest('1.1')}", board.cri_digests(IMAGE))
        self.assertIn("passed on and not kept", larder.log())
        registry.stop(signal.SIGKILL)
        other = self.containerd("1.6", larder)
        other.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{app.digest('1.0')}", other.cri_digests(IMAGE))
        self.assertEqual(larder.stop(), 0)
        # Mended: everything is as it was, and the new version is kept.
        lab.run("mount", "-o", "remount,rw", mount)
        registry.restart()
        larder.restart()
        lab.wait_until("the registry's return", lambda: larder.tier().endswith("upstream"))
        self.containerd("2.x", larder).cri_pull(IMAGE)
        self.assertEqual([image["state"] for image in larder.says("ls")], ["complete"])
        self.check_blobs(larder)

    def test_how_much_is_written(self):
        app, big = lab.built_images()
        registry = self.registry()
        registry.push(app, "1.0", "lab/app:latest")
        registry.push(big, "1.0", "lab/big:1.0")
        print("\n| cache | cached | written | written per byte cached |\n|---|---|---|---|")
        for name in ("larder", "docker-registry"):
            mount = self.small_disk("512M")
            if name == "larder":
                cache = self.larder(registry, '[disk]\nmin_free = "2MiB"\n', data=mount / "larder")
            else:
                cache = self.registry(root=mount / "registry", proxy=registry.url)
            # One that has been in use: folders and files that are made once are there.
            board = self.containerd("2.x", cache)
            board.cri_pull(IMAGE)
            self.wait_for_bytes(mount, app.bytes_for("1.0"))
            before, had = self.written(mount), self.stored(mount)
            board.cri_pull("docker.io/lab/big:1.0")
            self.wait_for_bytes(mount, big.bytes_for("1.0"))
            cache.stop()
            stored, written = self.stored(mount) - had, self.written(mount) - before
            print(f"| {name} | {stored / 1e6:.1f} MB | {written / 1e6:.2f} MB | {written / stored:.3f} |")
            self.assertGreater(stored, 10_000_000)
            if name == "larder":
                self.assertLess(written / stored, 1.1)

    def wait_for_bytes(self, mount, wanted):
        """Both caches store beside the answer; what images share is stored once."""
        lab.wait_until("the cache", lambda: self.stored(mount) >= wanted * 0.98)

    def stored(self, mount):
        """Bytes of content below a mount, in either layout."""
        files = [path for path in mount.rglob("*") if path.is_file() and "blobs" in path.parts]
        return sum(path.stat().st_size for path in files)

    def test_a_thousand_warm_pulls_and_an_idle_minute(self):
        app, _ = lab.built_images()
        registry = self.registry()
        registry.push(app, "1.0", "lab/app:latest")
        mount = self.small_disk("64M")
        larder = self.larder(registry, '[disk]\nmin_free = "2MiB"\n', data=mount / "larder")
        self.containerd("2.x", larder).cri_pull(IMAGE)
        before = self.written(mount)
        for _ in range(1000):
            status, headers, _ = larder.ask("/v2/lab/app/manifests/latest?ns=docker.io")
            self.assertEqual(status, 200)
            digest = headers["Docker-Content-Digest"]
            self.assertEqual(larder.ask(f"/v2/lab/app/manifests/{digest}?ns=docker.io", "GET")[0], 200)
        larder.stop()
        pulls = self.written(mount) - before
        larder.restart()
        self.assertEqual(larder.ask("/v2/lab/app/manifests/latest?ns=docker.io")[0], 200)
        # The batch of uses, at most once a minute.
        time.sleep(65)
        before = self.written(mount)
        time.sleep(60)
        idle = self.written(mount) - before
        print(f"\n1,000 warm pulls and an orderly end: {pulls / 1e3:.0f} kB written; an idle minute: {idle / 1e3:.1f} kB")
        self.assertLess(pulls, 1_000_000)
        self.assertLess(idle, 1_000_000 / 1440 * 10)


if __name__ == "__main__":
    unittest.main()
