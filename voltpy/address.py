"""A cluster's address, as users write it."""

from __future__ import annotations

import socket as sockets
from urllib.parse import parse_qsl, urlsplit

from voltpy.errors import Unavailable

DEFAULT_PORT = 21212
LISTENS_AGAIN_S = 0.05  # between two looks at whether a cluster that is being started listens


class Address:
    """`voltpy://host[:port][?affinity=on|off]`, taken apart. Raises ValueError for anything else."""

    __slots__ = ("affinity", "host", "port", "url")

    def __init__(self, url: str) -> None:
        form = "voltpy://HOST[:PORT][?affinity=on|off]"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{url!r} is no address: {error}; expected {form}") from None
        if parts.scheme != "voltpy":
            raise ValueError(f"{url!r} does not begin with voltpy://; expected {form}")
        if not parts.hostname:
            raise ValueError(f"{url!r} names no host; expected {form}")
        if parts.path not in ("", "/") or parts.fragment or parts.username or parts.password:
            raise ValueError(f"{url!r} has parts that mean nothing here; expected {form}")
        self.url = url
        self.host = parts.hostname
        self.port = DEFAULT_PORT if port is None else port
        self.affinity = True
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name != "affinity":
                raise ValueError(f"{url!r}: unknown option {name!r}; expected {form}")
            if value not in ("on", "off"):
                raise ValueError(f"{url!r}: affinity is on or off, not {value!r}")
            self.affinity = value == "on"

    def listens(self) -> bool:
        """False if this machine is meant and nothing listens: that is known at once."""
        if self.host not in ("127.0.0.1", "localhost", "::1"):
            return True
        try:
            sockets.create_connection((self.host, self.port), timeout=1.0).close()
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # whatever it is, connecting in earnest will tell
        return True

    def check(self) -> None:
        """Raises Unavailable where nothing listens: for commands to a cluster that should be there already."""
        if not self.listens():
            raise self.silent()

    def silent(self) -> Unavailable:
        """The error where nothing listens."""
        return Unavailable(f"nothing listens at {self.url}: is the cluster started (`voltpy start`)?")

    def tcp(self, port: int) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{port}"
