"""Whether anybody answers at an address, found out in seconds."""

from __future__ import annotations

import socket


def listens(address: str, seconds: float = 3.0) -> bool:
    """Whether a host:port answers at all; Ray itself would try for minutes. Names such as `auto` are Ray's to find."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return True
    try:
        with socket.create_connection((host, int(port)), timeout=seconds):
            return True
    except OSError:
        return False
