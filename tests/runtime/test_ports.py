"""Ports of what has just been killed are waited for; those of a living process are not."""

import os
import socket
import threading
import time

from headwater.runtime import ports

HOST = "127.0.0.1"


def test_a_port_that_nobody_can_be_named_for_is_waited_for(monkeypatch):
    with socket.create_server((HOST, ports.free_port())) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(ports, "_named_holder", lambda port: None)  # a killed process with a thread left
        assert not ports.comes_free(HOST, port, patience_s=0.1)
        threading.Timer(0.2, server.close).start()
        assert ports.comes_free(HOST, port, patience_s=30)


def test_the_port_of_a_living_process_is_refused_at_once():
    with socket.create_server((HOST, ports.free_port())) as server:
        port, began = server.getsockname()[1], time.monotonic()
        assert not ports.comes_free(HOST, port, patience_s=30)
        assert time.monotonic() - began < 15
        assert f"(pid {os.getpid()})" in ports.holder(port)
