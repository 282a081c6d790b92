"""Two TLS channels, connected by way of 127.0.0.1."""

from __future__ import annotations

import socket
import threading

from pymigrate.transport import tls

WAIT = 10.0  # seconds, for what happens at once


def connected() -> tuple[tls.TlsChannel, tls.TlsChannel]:
    """Give the source's end and the target's."""
    source, target = tls.Identity.make(), tls.Identity.make()
    accepted: list[tls.TlsChannel] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            line, _ = listener.accept()
            context = target.context(source.certificate, server=True)
            accepted.append(
                tls.accept(line, context, source.certificate, peer="ours", timeout=WAIT)
            )

        thread = threading.Thread(target=accept)
        thread.start()
        address = listener.getsockname()
        left = tls.connect(address, source, target.certificate, peer="beta", timeout=WAIT)
        thread.join()
    return left, accepted[0]
