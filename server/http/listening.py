"""The sockets that a server listens on, opened before anything else of it is."""

from __future__ import annotations

import errno
import os
import socket
import sys

BACKLOG = 2048


class CannotListen(Exception):
    """The address or the port cannot be had; the message says why."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of `host` (all of the machine's if it is blank); port 0: a free one.

    Raises CannotListen.
    """
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError):
        raise CannotListen(f"{host} is no address of this machine") from None
    sockets: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            if sockets and not port:
                # A free port, but one for all addresses.
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            sockets.append(_listener(family, address))
    except OSError as error:
        close(sockets)
        raise CannotListen(_reason(error, host, port)) from None
    return sockets


def close(sockets: list[socket.socket]) -> None:
    for listener in sockets:
        listener.close()


def url_of(listener: socket.socket) -> str:
    """Return the URL by which a client finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listener(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # There it would share the port with whoever has it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        # At once: bound alone, two processes can have one address until one of them listens.
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine"
    words = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot listen on port {port} of {host}: {words}"
