"""Where Prometheus scrapes."""

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server

from promoterd.errors import UsageError

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer


class MetricsServer:
    """Answers scrapes in threads of its own until closed. ``address`` is where it listens, None for nowhere."""

    def __init__(self, registry: CollectorRegistry, address: tuple[str, int] | None) -> None:
        self.address: tuple[str, int] | None = None
        self._server: WSGIServer | None = None
        if address is None:
            return
        host, port = address
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            reason = getattr(error, "strerror", None) or error
            hint = "choose another `metrics: listen:`, or `off`; `ss -ltnp` shows who listens where"
            raise UsageError(f"metrics cannot be served at {where}: {reason}", hint=hint) from error
        self.address = host, self._server.server_port

    def close(self) -> None:
        """Stop listening; a scrape under way is not waited for."""
        if self._server is not None:
            ending = threading.Thread(target=self._server.shutdown)
            ending.start()
            with suppress(OSError):  # the server looks whether it is to end after each request, or twice a second
                socket.create_connection(self.address or ("", 0), timeout=1.0).close()
            ending.join()
            self._thread.join()
            self._server.server_close()
            self._server = None
