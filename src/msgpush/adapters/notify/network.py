"""The network as httpcore2 is to see it: names are resolved here, and what they lead to is checked.

TLS is that of the event loop, which costs a third of what it would in Python."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2

from msgpush.adapters.notify.places import is_public

# RFC 9113, sections 3.4 and 6.2.
_PREFACE, _HEADERS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1


class Inside(Exception):
    """A name leads to no public address. It carries nothing that a log mustn't have."""


class Stale(httpcore2.WriteError):
    """The other side had closed the connection before a request was begun on it."""


class Network(httpcore2.AsyncNetworkBackend):
    """Connects to public addresses, and to those hosts that may be anywhere.

    Args:
        trusted: hosts and ports that whoever set this up has named.
    """

    def __init__(self, trusted: Iterable[tuple[str, int]]) -> None:
        self._trusted = frozenset(trusted)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # the latter: no name is so long, or has such a part
            raise httpcore2.ConnectError("its name can't be resolved") from None
        if (host, port) not in self._trusted:
            found = [each for each in found if is_public(str(each[4][0]))]
            if not found:
                raise Inside
        number = errno.EHOSTUNREACH
        for family, kind, protocol, _, address in found:
            made = socket.socket(family, kind, protocol)
            try:
                made.setblocking(False)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_connect(made, address)
                return _Plain(made)
            except OSError as error:
                made.close()
                number = error.errno or number
            except BaseException:
                made.close()
                raise
        raise httpcore2.ConnectError(errno.errorcode.get(number, "no connection"))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Plain(httpcore2.AsyncNetworkStream):
    """A connection before TLS: nothing is said on it."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            reader, writer = await asyncio.open_connection(
                sock=self._socket, ssl=ssl_context, server_hostname=server_hostname
            )
        except ssl.SSLCertVerificationError as error:
            self._socket.close()
            raise httpcore2.ConnectError(f"its certificate: {error.verify_message}") from None
        except (OSError, EOFError) as error:
            self._socket.close()
            raise httpcore2.ConnectError(type(error).__name__) from None
        except BaseException:
            self._socket.close()
            raise
        return _Secure(reader, writer)

    async def aclose(self) -> None:
        self._socket.close()


class _Secure(httpcore2.AsyncNetworkStream):
    """A connection under TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError:
            raise httpcore2.ReadTimeout from None
        except OSError as error:
            raise httpcore2.ReadError(type(error).__name__) from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._left:
            if _begins_request(buffer):
                raise Stale
            return  # it may have answered before it went: that is still read
        try:
            self._writer.write(buffer)
            await self._writer.drain()
        except OSError as error:
            raise httpcore2.WriteError(type(error).__name__) from None

    async def aclose(self) -> None:
        # Nobody waits for the other side's goodbye: it may never come.
        self._writer.transport.abort()
        await asyncio.sleep(0)  # in this turn of the loop it is closed

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # asked of a connection that is idle
            return self._left
        return self._writer.get_extra_info(info)

    @property
    def _left(self) -> bool:
        """Whether the other side has gone."""
        return self._reader.at_eof() or self._writer.is_closing()


def _begins_request(buffer: bytes) -> bool:
    """True if a request's first part is in what is to be written: HTTP/1.1, or frames of HTTP/2."""
    if buffer.startswith(b"POST "):
        return True
    at = len(_PREFACE) if buffer.startswith(_PREFACE) else 0
    while at < len(buffer):
        if buffer[at + 3] == _HEADERS:
            return True
        at += 9 + int.from_bytes(buffer[at : at + 3])
    return False
