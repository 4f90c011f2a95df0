"""A network of the test's own: a namespace with its addresses, and the names that programs in it know."""

from lib import network
from lib.process import run


class Namespace:
    """A network namespace that new sockets of this process can be made in."""

    def __init__(self, name):
        self.name = name
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def inside(self):
        return network.inside(f"/run/netns/{self.name}")

    def prefix(self):
        return ["ip", "netns", "exec", self.name]

    def remove(self):
        run("ip", "netns", "del", self.name, check=False)

    def has(self, address):
        """Gives the namespace an address."""
        only = ("nodad",) if ":" in address else ()
        run("ip", "-n", self.name, "address", "add", f"{address}/{128 if only else 32}", "dev", "lo", *only)

    def drops(self, address):
        """Has every packet to an address be lost, and nobody told."""
        program = "ip6tables" if ":" in address else "iptables"
        run(*self.prefix(), program, "--append", "INPUT", "--destination", address, "--jump", "DROP")


def knowing(hosts):
    """What has a program run with a file of its own in place of /etc/hosts."""
    return ("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh")
