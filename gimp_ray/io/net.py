"""Check that a host and port accept connections."""

from __future__ import annotations

import socket


def is_port_open(address: str, seconds: float = 3.0) -> bool:
    """Whether host:port accepts connections; True for names such as `auto`, which Ray resolves itself."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return True
    try:
        with socket.create_connection((host, int(port)), timeout=seconds):
            return True
    except OSError:
        return False
