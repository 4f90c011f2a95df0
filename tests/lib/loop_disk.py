"""A file system of its own, in a file: small, slow, or watched."""

from lib.process import run


class LoopDisk:
    """An ext4 file system on a loop device, mounted at `mount` until it is removed."""

    def __init__(self, folder, size):
        image, self.mount = folder / "image", folder / "mount"
        self.mount.mkdir()
        run("truncate", "--size", size, image)
        # All of it is written now, and not by the kernel later, beside what is measured.
        run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
        run("mount", "-o", "loop", image, self.mount)
        self.device = run("findmnt", "-no", "SOURCE", self.mount).stdout.strip()

    def remount(self, how):
        """`ro` or `rw`."""
        run("mount", "-o", f"remount,{how}", self.mount)

    def remove(self):
        run("umount", "-l", self.mount, check=False)
