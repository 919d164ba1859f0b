"""For tests whose processes find each other on this machine."""

import socket


def free_port():
    """A port of loopback that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
