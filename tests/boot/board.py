"""An emulated 64-bit ARM board: Debian's arm64 kernel, a small Debian root with systemd, and what the package installs.

The owner's shell is a serial port of its own, so that it works with no network. The network is QEMU's, and a board may
have none. The disk is one that a power cut takes something from.
"""

import contextlib
import gzip
import itertools
import re
import shutil
import socket
import stat
import subprocess
import time

from power_cut_disk import PowerCutDisk

from lib import debian
from lib.network import free_port
from lib.process import run

# The smaller of Debian's kernels for this kind of machine.
KERNEL = "linux-image-cloud-arm64"
PACKAGES = "systemd-sysv,base-files,base-passwd,busybox-static"
# In the order in which they need one another.
MODULES = (
    "virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
    "failover", "net_failover", "virtio_net", "virtio_console",
)  # fmt: skip
# What systemd would do besides, its generators included, and this board has no use for: it would be most of the time
# of a start.
NOT_STARTED = (
    "getty.target", "serial-getty@ttyAMA0.service", "modprobe@configfs.service", "modprobe@dm_mod.service",
    "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service", "modprobe@loop.service",
    "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "proc-sys-fs-binfmt_misc.automount", "systemd-modules-load.service", "systemd-binfmt.service",
    "systemd-random-seed.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
    "systemd-repart.service", "systemd-pstore.service", "systemd-hwdb-update.service", "systemd-logind.service",
    "systemd-user-sessions.service", "systemd-tmpfiles-setup-dev.service", "kmod-static-nodes.service",
    "systemd-journal-catalog-update.service", "ldconfig.service", "timers.target", "systemd-initctl.socket",
)  # fmt: skip
DISK_BYTES = 1 << 30
MEMORY = "512M"
CORES = 2
# An emulated board on a busy machine: what needs this long has hung.
PATIENCE = 300
# The emulator only, without what it emulates.
QEMU_PATIENCE = 60
# Where the board finds this machine, and what it is called itself, in QEMU's network.
HOST, GUEST, ROUTER = "10.0.2.2", "10.0.2.15", "10.0.2.2"
PORT = 5000
# The clock of a board that has none.
EPOCH = 60

# Mounts the disk and hands over to it: Debian's kernel has no driver for it built in.
FIRST_PROGRAM = f"""#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /root
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in {" ".join(MODULES)}; do $b insmod /modules/$module.ko; done
while [ ! -b /dev/vda ]; do $b sleep 0.1; done
if [ -e /sys/class/net/eth0 ]; then
    $b ip link set eth0 up
    $b ip address add {GUEST}/24 dev eth0
    $b ip route add default via {ROUTER}
fi
echo "kernel's clock: $($b date +%s)"
$b mount -t ext4 /dev/vda /root
$b umount /proc; $b umount /sys
exec $b switch_root /root /sbin/init
"""

# systemd moves a clock of 1970 on to the day that it was built. Boards whose init does not are older, but they exist.
CLOCK_UNIT = f"""[Unit]
Description=The clock of a board without one
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/busybox date -s @{EPOCH}
[Install]
WantedBy=sysinit.target
"""

SHELL_UNIT = """[Unit]
Description=The owner, at a serial port
[Service]
ExecStart=/bin/busybox sh -c 'exec /bin/busybox sh <>$(echo /dev/vport*p1) >&0 2>&0'
Environment=PATH=/usr/sbin:/usr/bin:/sbin:/bin
[Install]
WantedBy=multi-user.target
"""


def build(folder, package, config, store):
    """Makes kernel, first file system and disk image. `store` is a data directory that the board finds filled."""
    kernel, first = _kernel(folder)
    root = folder / "root"
    debian.make_root(root, "extract", PACKAGES, "--architectures=arm64")
    debian.unpack(package, root)
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "etc/hostname").write_text("board\n")
    (root / "etc/larder").mkdir(exist_ok=True)
    (root / "etc/larder/larder.toml").write_text(config)
    units = root / "etc/systemd/system"
    (units / "clock.service").write_text(CLOCK_UNIT)
    (units / "owner.service").write_text(SHELL_UNIT)
    for applet in ("sh", "cat", "date", "wget", "sha256sum", "dmesg", "find", "ls", "sync", "stat", "sed"):
        with contextlib.suppress(FileExistsError):
            (root / "usr/bin" / applet).symlink_to("/bin/busybox")
    run("systemctl", f"--root={root}", "enable", "clock.service", "owner.service", "larder.service")
    run("systemctl", f"--root={root}", "mask", *NOT_STARTED)
    shutil.rmtree(root / "lib/systemd/system-generators")
    # It belongs to root there; systemd gives a service the folder of its state.
    shutil.copytree(store, root / "var/lib/larder")
    image = folder / "disk"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    run("mke2fs", "-q", "-t", "ext4", "-L", "board", "-d", root, image)
    shutil.rmtree(root)
    return Files(kernel, first, image)


class Files:
    """What a board boots from."""

    def __init__(self, kernel, first, image):
        self.kernel, self.first, self.image = kernel, first, image


def _kernel(folder):
    # The package that always depends on the newest kernel.
    meta, busybox = debian.packages("arm64", KERNEL, "busybox-static")
    depends = run("dpkg-deb", "--field", meta, "Depends").stdout.split()[0]
    (deb,) = debian.packages("arm64", depends)
    tree = folder / "kernel"
    debian.unpack(deb, tree)
    debian.unpack(busybox, tree)
    entries = [("bin", None), ("modules", None), ("init", FIRST_PROGRAM.encode())]
    program = next(path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.exists())
    entries.append(("bin/busybox", program.read_bytes()))
    for module in MODULES:
        path = next(tree.rglob(f"{module}.ko"))
        entries.append((f"modules/{module}.ko", path.read_bytes()))
    first = folder / "first"
    first.write_bytes(gzip.compress(_cpio(entries), compresslevel=1))
    kernel = folder / "vmlinuz"
    shutil.copy(next(tree.glob("boot/vmlinuz-*")), kernel)
    shutil.rmtree(tree)
    return kernel, first


def _cpio(entries):
    """An archive as the kernel takes it (`newc`): folders, where the content is `None`, and programs."""
    out = bytearray()
    for inode, (name, content) in enumerate([*entries, ("TRAILER!!!", b"")], start=1):
        mode = stat.S_IFDIR | 0o755 if content is None else stat.S_IFREG | 0o755
        content = content or b""
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


class Board:
    """A board that is switched on. Its shell answers once the root is up."""

    name = "board"
    count = itertools.count()

    def __init__(self, folder, files, network):
        self.folder, self.began = folder, time.monotonic()
        number = next(Board.count)
        self.console = folder / f"console-{number}"
        self.disk = PowerCutDisk(files.image, folder / f"disk-{number}.sock")
        shell = socket.socket(socket.AF_UNIX)
        shell.bind(str(folder / f"shell-{number}.sock"))
        shell.listen()
        shell.settimeout(QEMU_PATIENCE)
        self.port = free_port() if network else None
        command = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-smp", CORES, "-m", MEMORY]
        command += ["-accel", "tcg,thread=multi", "-display", "none", "-no-reboot", "-nodefaults"]
        command += ["-rtc", "base=1970-01-01T00:00:00", "-serial", f"file:{self.console}"]
        command += ["-kernel", files.kernel, "-initrd", files.first]
        command += ["-append", "console=ttyAMA0 panic=-1 net.ifnames=0 systemd.show_status=false"]
        command += ["-drive", f"if=none,id=disk,format=raw,cache=writeback,file=nbd+unix:///?socket={self.disk.address}"]
        command += ["-device", "virtio-blk-pci,drive=disk"]
        command += ["-chardev", f"socket,id=owner,path={folder}/shell-{number}.sock"]
        command += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=owner,name=owner"]
        if network:
            command += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-{GUEST}:{PORT}"]
            command += ["-device", "virtio-net-pci,netdev=net,romfile="]
        with (folder / f"qemu-{number}.log").open("wb") as log:
            self.child = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        try:
            # QEMU itself connects, before the board does anything.
            self.shell, _ = shell.accept()
        except TimeoutError:
            raise AssertionError(f"QEMU does not run:\n{(folder / f'qemu-{number}.log').read_text()}") from None
        finally:
            shell.close()
        self.shell.settimeout(PATIENCE)
        self.incoming = self.shell.makefile("rb")

    def says(self, command, check=True):
        """What a command prints on the board. It must succeed, unless that is not asked for."""
        self.shell.sendall(f"{command}\nprintf '\\n=%s=\\n' $?\n".encode())
        lines = []
        while line := self.incoming.readline().decode(errors="replace"):
            line = line.rstrip("\n")
            if ended := re.fullmatch(r"=(\d+)=", line):
                said = "\n".join(lines).rstrip("\n")
                if check and ended[1] != "0":
                    raise AssertionError(f"{command} ended with {ended[1]}:\n{said}")
                return said
            lines.append(line)
        raise AssertionError(f"the board ended during {command}:\n{self.log()[-3000:]}")

    def log(self):
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def cut(self, seed):
        """Pulls the plug. How many sectors that were not flushed the disk kept and lost."""
        kept, lost = self.disk.cut(seed)
        self.child.kill()
        self._ended()
        return kept, lost

    def shut_down(self):
        """As the owner would."""
        self.shell.sendall(b"systemctl --no-block poweroff\n")
        self.child.wait(PATIENCE)
        self._ended()

    def stop(self):
        """At the end of a test, whatever state the board is in."""
        if self.child.poll() is None:
            self.child.kill()
            self._ended()

    def _ended(self):
        self.child.wait()
        self.incoming.close()
        self.shell.close()
        self.disk.close()
