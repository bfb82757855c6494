"""Checks an address before viser serves it: viser silently takes another port if one is in use."""

import errno
import socket

from ..errors import UserError


def check_address(host: str, port: int) -> None:
    """Raises UserError for a host that is not this machine, or a port that is in use."""
    if not 0 <= port <= 65535:
        raise UserError(f"`port={port}`", "a number from 0 (any free one) to 65535", "such as 8080")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise make_port_error(port) from error
        raise UserError(
            f"`host={host}` and `port={port}` cannot be served ({error.strerror})",
            "an address of this machine and a port that you may use",
            "leave out `host` for this machine alone, and use a port from 1024 on",
        ) from error


def make_port_error(port: int) -> UserError:
    """Returns the error for a port that another program uses."""
    return UserError(
        f"port {port} is in use",
        "a port that nobody serves",
        "choose another `port`, or any that is free with `port=0`",
    )
