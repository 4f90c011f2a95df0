"""One request, one answer."""

import contextlib
import http.client

from lib.process import HANG_SECONDS


def request(address, port, method, path, headers=None, connected=None):
    """Status, headers and body of an answer. `connected` is a socket that leads there already."""
    connection = http.client.HTTPConnection(address, port, timeout=HANG_SECONDS)
    connection.sock = connected
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
