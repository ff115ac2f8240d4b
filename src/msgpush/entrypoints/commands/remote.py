"""The service that a command talks to: where it is, with which token, and what its answers mean."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import click
import httpx2
import msgspec

from msgpush.client.errors import MsgpushError, Rejected, Unavailable, rejected
from msgpush.client.http import TIMEOUT, base_url
from msgpush.entrypoints.output import safe

DEFAULT_URL = "http://127.0.0.1:8089"
# What a header and a URL may have: everything else isn't of a token, but of a mistake.
TOKEN_RULE = "a token is one word of printable ASCII characters"

Query = Mapping[str, Any]
T = TypeVar("T")


class Failed(click.ClickException):
    """The service has refused something, or its answer makes no sense."""

    exit_code = 1


class Unreachable(Failed):
    """There is no service, or no way to it."""

    exit_code = 3


class Remote(NamedTuple):
    """A service, and what it is shown.

    Args:
        url: without a slash at its end.
        token: or nothing.
    """

    url: str
    token: str | None

    @classmethod
    def given(
        cls, environ: Mapping[str, str], url: str | None, token: str | None, file: Path | None
    ) -> Self:
        """The service that options and variables name.

        Raises:
            click.UsageError: they name none.
        """
        if token and file:
            raise click.UsageError("--token and --token-file exclude each other")
        token = token or (_read(file) if file else environ.get("MSGPUSH_TOKEN", "").strip()) or None
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise click.UsageError(f"the token can't be one: {TOKEN_RULE}")
        return cls(checked_url(url or environ.get("MSGPUSH_URL") or DEFAULT_URL), token)

    @property
    def shown(self) -> str:
        """The URL, without the password that it may have."""
        return shown_url(self.url)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def client(self, timeout: httpx2.Timeout | float = TIMEOUT) -> httpx2.Client:
        """What requests are made with; has to be closed.

        Raises:
            Unreachable: the environment names a proxy or certificates that can't be used.
        """
        try:
            return httpx2.Client(headers=self.headers, timeout=timeout)
        except (ImportError, OSError, ValueError) as error:
            raise Unreachable(
                "no connection can be made with the proxy or the certificates that the environment"
                f" names: {safe(str(error))}"
            ) from None

    def get(self, path: str, form: type[T], query: Query | None = None) -> T:
        """What the service answers to a question; raises as `ask`."""
        return self.read(self.ask("GET", path, query), form)

    def read(self, body: bytes, form: type[T]) -> T:
        """An answer's content."""
        try:
            return msgspec.json.decode(body, type=form)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Failed(f"{self.shown} doesn't answer as msgpush does; {self.doctor}") from None

    def ask(self, method: str, path: str, query: Query | None = None, body: Any = None) -> bytes:
        """Make a request; returns the body of the answer.

        Raises:
            Failed: it is refused.
            Unreachable: there is no answer.
        """
        content = json.dumps(body).encode() if body is not None else None
        try:
            with self.client() as client:
                answer = client.request(
                    method, self.url + path, params=_present(query or {}), content=content
                )
        except httpx2.HTTPError as error:
            raise self.unreachable(error) from None
        if answer.is_success:
            return answer.content
        raise self.failed(rejected(answer.status_code, answer.content))

    def failed(self, error: MsgpushError) -> Failed:
        """An error of the client as the command tells it: with what to do."""
        if isinstance(error, Rejected):
            return Failed(f"{error}{self._faults(error)}{self._advice(error)}")
        if isinstance(error, Unavailable):
            return Unreachable(f"{error}; {self.doctor}")
        return Failed(str(error))

    def unreachable(self, error: Exception | str) -> Unreachable:
        return Unreachable(
            f"{self.shown} can't be reached: {str(error) or type(error).__name__}; set MSGPUSH_URL"
            " or --url to where the service is"
        )

    @property
    def doctor(self) -> str:
        return f"`msgpush doctor {self.shown}` finds out why"

    def _faults(self, error: Rejected) -> str:
        return "".join(
            f"; {fault.pointer}: {fault.detail}"
            for fault in error.faults
            if fault.detail not in error.detail
        )

    def _advice(self, error: Rejected) -> str:
        if error.status == 401 and not self.token:
            return "; set MSGPUSH_TOKEN, or give --token-file"
        if error.status == 401:
            return (
                "; give another token (MSGPUSH_TOKEN, --token-file): `msgpush token inspect` says"
                " what is wrong with this one"
            )
        if error.status == 403 and self.token:
            return "; `msgpush token inspect` says what the token allows"
        lost = "not an answer of msgpush" in error.detail or error.detail == "Not Found"
        return f"; {self.doctor}" if lost else ""


def checked_url(url: str) -> str:
    """A service's URL, without a slash at its end.

    Raises:
        click.UsageError: it is none.
    """
    try:
        if "#" in url:
            raise ValueError("a service has no fragment")
        httpx2.URL(url).host.encode("idna")  # as it is looked up
        return base_url(url)
    except (ValueError, httpx2.InvalidURL):
        raise click.UsageError(
            f'the URL is "{shown_url(url)}": it must be such as {DEFAULT_URL} or'
            " https://push.example.com"
        ) from None


def shown_url(url: str) -> str:
    """A URL as it may be told: without user and password, and without what a query may hold."""
    scheme, slashes, rest = url.rpartition("://") if "://" in url else ("", "", url)
    place, question, _ = rest.rpartition("@")[2].partition("?")
    return safe(f"{scheme}{slashes}{place}{'?...' if question else ''}")


URL_HELP = f"Where it is.  [MSGPUSH_URL; {DEFAULT_URL}]"
WAITS = click.option(
    "--wait",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="How long a service that can't be reached at first is waited for.  [0]",
)
TOKEN_HELP = "What it is shown; others see it in the list of processes.  [MSGPUSH_TOKEN]"


def talks_to_service(
    command: Callable[..., None],
    *,
    token_flags: tuple[str, ...] = ("--token",),
    url_argument: bool = False,
) -> Callable[..., None]:
    """Give a command the options that say which service is meant; it gets a `Remote` first.

    Args:
        url_argument: whether the URL is an argument, and no option.
    """
    url_parameter = (
        click.argument("url", required=False)
        if url_argument
        else click.option("--url", metavar="URL", help=URL_HELP)
    )

    @url_parameter
    @click.option(*token_flags, "token", metavar="TOKEN", help=TOKEN_HELP)
    @click.option(
        "--token-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The same, from a file.",
    )
    @click.pass_context
    @functools.wraps(command)
    def with_service(
        ctx: click.Context,
        /,
        *args: Any,
        url: str | None,
        token: str | None,
        token_file: Path | None,
        **options: Any,
    ) -> None:
        command(Remote.given(ctx.obj, url, token, token_file), *args, **options)

    return with_service


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise click.UsageError(f"--token-file {file}: {why}") from None


def _present(query: Query) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value not in (None, ())}
