"""The program under test, as it is installed: one binary, one configuration file."""

import json
import time

from lib import environment, http_client
from lib.network import free_port
from lib.process import Process, run

PROGRAM = environment.path("LARDER")


class Larder(Process):
    """A server. `upstreams` has the keys of each upstream by its name, `more` further lines of the configuration."""

    def __init__(
        self, folder, upstreams, more="", platform="linux/amd64", data=None, tls=None, address="127.0.0.1", **options
    ):
        self.port, self.address, self.data = free_port(), address, data or folder / "data"
        self.ports = (self.port,)
        self.config = folder / "larder.toml"
        # The machines that tests run on may be full.
        more += "" if "[disk]" in more else '\n[disk]\nmin_free = "16MiB"\n'
        text = f'listen = ["{address}:{self.port}"]\ndata_dir = "{self.data}"\nplatforms = ["{platform}"]\n{more}\n'
        for name, keys in upstreams.items():
            text += f'[upstream."{name}"]\n'
            text += "".join(f"{key} = {json.dumps(str(value))}\n" for key, value in keys.items())
        if tls:
            text += f'[tls]\ncert_file = "{tls[0]}"\nkey_file = "{tls[1]}"\n'
        self.config.write_text(text)
        options.setdefault("name", "larder")
        command = [PROGRAM, "--config", self.config, options.pop("verbosity", "-v"), "serve"]
        super().__init__(command=command, folder=folder, **options)

    def run(self, *arguments, check=True):
        """Runs a command of the program with the server's configuration."""
        return run(PROGRAM, "--config", self.config, *arguments, check=check)

    def says(self, *arguments):
        """What a command prints, with --json, as a value."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def ask(self, path, method="HEAD", headers=None):
        """Status, headers and seconds of a request."""
        began = time.monotonic()
        status, headers, _ = http_client.request(self.address, self.port, method, path, headers)
        return status, headers, time.monotonic() - began

    def tier(self, repository="lab/app", tag="latest"):
        """How a tag is answered: what `Cache-Status` says, or the status of a refusal."""
        status, headers, _ = self.ask(f"/v2/{repository}/manifests/{tag}?ns=docker.io")
        return headers.get("Cache-Status", "") if status == 200 else str(status)

    def metric(self, name):
        """The sum of a metric's series."""
        _, _, text = http_client.request(self.address, self.port, "GET", "/metrics")
        return sum(float(line.split()[-1]) for line in text.decode().splitlines() if line.startswith(name))
