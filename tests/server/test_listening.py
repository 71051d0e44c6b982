from __future__ import annotations

import socket
from contextlib import closing

import pytest

from server.http.listening import CannotListen, close, listen, url_of


def test_a_port_that_is_in_use_is_one_line() -> None:
    (first,) = listen("127.0.0.1", 0)
    with closing(first):
        port = first.getsockname()[1]
        said = f"port {port} on 127.0.0.1 is in use; choose another with --port"
        with pytest.raises(CannotListen) as caught:
            listen("127.0.0.1", port)
        assert str(caught.value) == said
        (other,) = listen("127.0.0.2", port)
        other.close()
    (again,) = listen("127.0.0.1", port)  # at once, connections that linger or not
    again.close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "x" * 300, "a..b"])
def test_what_is_no_address_of_this_machine(host: str) -> None:
    with pytest.raises(CannotListen, match="is no address of this machine"):
        listen(host, 0)


@pytest.mark.parametrize("host", ["localhost", "", "0.0.0.0"])
def test_every_address_of_a_name_has_the_same_port(host: str) -> None:
    sockets = listen(host, 0)
    try:
        (port,) = {listener.getsockname()[1] for listener in sockets}
        assert port
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    finally:
        close(sockets)


def test_the_url_of_a_listener() -> None:
    (listener,) = listen("127.0.0.1", 0)
    with closing(listener):
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
