"""What the recipes are tried on: the package, the tarball, and a small Debian system that they go into."""

import atexit
import contextlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
RECIPES = TOP / "firmware-config"
# Generous: the machine may be busy. What needs this long has hung.
PATIENCE = 600
SUITE = "bookworm"
# What is in the images that recipes work on, beyond the essential packages.
PACKAGES = "systemd,init-system-helpers,passwd"

SCRATCH = pathlib.Path(tempfile.mkdtemp(prefix="larder-recipes-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


def given(name):
    return pathlib.Path(os.environ.get(name) or sys.exit(f"{name} names no file: run tests/run"))


# Of this machine's architecture, as cross/package.sh packs them.
PACKAGE, TARBALL = given("LARDER_DEB"), given("LARDER_TARBALL")
VERSION = next(
    line.split('"')[1] for line in (TOP / "Cargo.toml").read_text().splitlines() if line.startswith("version = ")
)


def run(*command, check=True, **options):
    """Runs a program to its end; a failure shows what it said."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def once(make):
    """Calls a function the first time only, and remembers what it returned."""
    kept = []
    return lambda: kept[0] if kept else (kept.append(make()) or kept[0])


# By its path: there is a package of the same name.
spec = importlib.util.spec_from_file_location("real_debian", TOP / "tests/real/debian.py")
debian = importlib.util.module_from_spec(spec)
spec.loader.exec_module(debian)


def unpacked(package):
    """A Debian package's files, for one that has no business on the machine of whoever runs the tests."""
    folder = SCRATCH / package
    if not folder.exists():
        (file,) = debian.packages(SCRATCH, SUITE, "amd64", [package])
        debian.unpack(file, folder)
    return folder


@once
def debian_root():
    """A configured Debian system, made once; each test works on a copy."""
    root = SCRATCH / "debian"
    run(
        *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "--aptopt=APT::Sandbox::User \"root\""),
        *(SUITE, root, debian.mirror()),
    )
    return root


class Case(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=SCRATCH))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def root(self):
        """A copy of the Debian system."""
        root = self.folder / "root"
        run("cp", "-a", "--reflink=auto", debian_root(), root)
        return root

    def assert_installed(self, root):
        """The program, the canonical unit and configuration, enabled, and the user; and nothing left behind."""
        self.assertIn(VERSION, run("chroot", root, "larder", "--version").stdout)
        for source, name in canonical():
            self.assertEqual((root / name).read_bytes(), source.read_bytes(), name)
        wants = root / "etc/systemd/system/multi-user.target.wants/larder.service"
        self.assertTrue(wants.is_symlink(), "larder.service is enabled")
        self.assertFalse((root / "etc/systemd/system/sockets.target.wants/larder.socket").is_symlink())
        self.assertIn("\nlarder:", (root / "etc/passwd").read_text())
        for path in ("tmp/larder.deb", "root/larder.deb"):
            self.assertFalse((root / path).exists(), path)
        with contextlib.suppress(FileNotFoundError):
            self.assertEqual(os.listdir(root / "proc"), [], "nothing stays mounted")


def canonical():
    """The one unit and the one configuration, and where they belong."""
    units = [path for path in (TOP / "systemd").glob("larder*") if path.is_file()]
    yield from ((path, f"usr/lib/systemd/system/{path.name}") for path in units)
    yield TOP / "systemd/sysusers.d/larder.conf", "usr/lib/sysusers.d/larder.conf"
    yield TOP / "firmware-config/larder.toml", "etc/larder/larder.toml"
