"""A proxy that cuts connections at random: what was asked may have been done, or not."""

import contextlib
import random
import socket
import threading
from typing import Self


class CuttingProxy:
    """A port that leads to a service; some connections end in the middle of something.

    Args:
        chance: decides which, and after how many bytes.
        share: of the connections that are cut, while `cutting` is true.
    """

    def __init__(self, target: int, chance: random.Random, share: float = 0.5) -> None:
        self._target, self._chance, self._share = target, chance, share
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cutting = True
        self.cut = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True, name="proxy").start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                doomed = self.cutting and self._chance.random() < self._share
                for source, sink in ((client, server), (server, client)):
                    # Whichever direction comes to its end first takes the other along.
                    left = self._chance.randrange(20, 4000) if doomed else None
                    way = (source, sink, left)
                    threading.Thread(target=self._pump, args=way, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, left: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if left is not None and len(data) >= left:
                    sink.sendall(data[:left])
                    self.cut += 1
                    break
                sink.sendall(data)
                left = None if left is None else left - len(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
