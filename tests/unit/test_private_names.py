"""What is used of libraries below their public surface is still there: an upgrade fails here, with
the name.

Such libraries have upper bounds in pyproject.toml, at the newest release that this has seen.
"""

import inspect
import re
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from authlib.integrations.starlette_client import StarletteOAuth2App
from joserfc.jws import JWSRegistry
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from uvicorn.server import ServerState

from msgpush.adapters.auth import oidc, tokens
from msgpush.adapters.http import dispatch, pages
from msgpush.adapters.sse import stream
from msgpush.entrypoints import app, protocol, server

ROOT = Path(__file__).parents[2]


class Private(NamedTuple):
    """A name that we rely on.

    Args:
        name: an attribute of a module, a class or its objects; in brackets, parameters that are
            given by their names.
        where: our module that relies on it.
        why: what for.
    """

    library: str
    owner: str
    name: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


# library, module or module:Class, our module: each name, and what for
TABLE: dict[tuple[str, str, str], dict[str, str]] = {
    ("uvicorn", "uvicorn.server:ServerState", "entrypoints/protocol.py"): {
        "connections": "they are shut down, and cut",
        "tasks": "they may finish",
        "default_headers": "those of every response: our state renders them once a second",
        "total_requests": "after so many, uvicorn would stop",
    },
    ("uvicorn", "uvicorn:Server", "entrypoints/server.py"): {
        "startup": "tells when it listens",
        "on_tick": "connections that are too slow end",
        "shutdown": "drains with the sockets open",
        "capture_signals": "the exit status is ours",
        "handle_exit": "a second signal ends the process",
        "run(sockets)": "on a socket whose options its connections inherit",
        "servers": "they stop listening after the drain",
        "started": "the exit status",
        "should_exit": "a signal was there",
        "server_state": "has the limits",
        "lifespan": "is shut down last",
    },
    ("httptools", "httptools:HttpRequestParser", "entrypoints/protocol.py"): {
        "feed_data": "in slices",
        "set_dangerous_leniencies": "as uvicorn sets it, for the parser that takes over after an upgrade",
        "should_upgrade": "no upgrade is offered",
        "get_method": "CONNECT is refused",
        "get_http_version": "other versions are refused",
    },
    ("httptools", "httptools", "entrypoints/protocol.py"): {
        "HttpParserUpgrade": "where its head ends is its argument",
        "HttpParserError": "it is no request",
    },
    ("websockets", "websockets.server:ServerProtocol", "entrypoints/websocket.py"): {
        "process_request": "checks a handshake whose head httptools has parsed",
    },
    ("websockets", "websockets.headers", "entrypoints/websocket.py"): {"parse_subprotocol": "those that are offered"},
    ("websockets", "websockets.exceptions:InvalidHeader", "entrypoints/websocket.py"): {"name": "which is at fault"},
    ("websockets", "websockets.protocol:Protocol", "entrypoints/websocket.py"): {
        "__init__(side, state, max_size, logger)": "with the handshake behind it",
        "debug": "it would log what frames say",
        "reader": "whether a frame has begun",
        "parser": "is ended: else it is a circle",
        "parser_exc": "is dropped: else it is a circle",
        "close_rcvd": "the code that the application is told",
        "close_sent": "the code where the client broke the protocol",
    },
    ("websockets", "websockets.streams:StreamReader", "entrypoints/websocket.py"): {"buffer": "whether a frame has begun"},
    ("websockets", "websockets.frames:Frame", "entrypoints/websocket.py"): {"serialize(mask)": "frames, one by one"},
    ("redis", "redis.asyncio.connection:Connection", "adapters/redis/link.py"): {
        "__init__(host, port, db, client_name, socket_timeout, socket_connect_timeout, retry, protocol)": "without the "
        "client's pool and retries",
        "__init__(maint_notifications_config)": "they hide dead connections",
        "connect": "when the link wants it",
        "can_read": "what is there to read unasked is the end",
        "send_command": "one command",
        "send_packed_command(check_health)": "commands that hiredis has packed",
        "read_response(disable_decoding)": "bytes stay bytes",
        "disconnect(nowait)": "at once: the server may not answer",
        "host": "an error names it",
        "port": "an error names it",
    },
    ("redis", "redis.asyncio.connection:SSLConnection", "adapters/redis/link.py"): {
        "__init__(ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_check_hostname)": "the same with TLS",
    },
    ("redis", "redis.crc", "adapters/redis/link.py"): {"key_slot": "which primary of a Cluster has the log"},
    ("redis", "redis.asyncio.retry:Retry", "adapters/redis/link.py"): {"__init__(backoff, retries)": "none"},
    ("redis", "redis.maint_notifications:MaintNotificationsConfig", "adapters/redis/link.py"): {
        "__init__(enabled)": "they hide dead connections",
    },
    ("redis", "hiredis", "adapters/redis/link.py"): {"pack_command": "in C: a tenth of the time"},
    ("joserfc", "joserfc.jws:JWSRegistry", "adapters/auth/tokens.py"): {
        "__init__(algorithms, strict_check_header)": "any header that asks for nothing special",
        "get_alg": "ours takes those that joserfc warns of",
        "check_header": "the header's types",
        "algorithms": "all of them, by name",
        "allowed": "those that we allow",
        "max_header_length": "real issuers' are longer than its own limit",
        "max_payload_length": "real issuers' are longer than its own limit",
    },
    ("joserfc", "joserfc.jws", "adapters/auth/tokens.py"): {
        "extract_compact": "the header is read before the signature is verified",
        "validate_compact(registry)": "by one key after the other",
        "CompactSignature": "the header and the payload",
    },
    ("authlib", "authlib.integrations.starlette_client:StarletteOAuth2App", "adapters/auth/oidc.py"): {
        "load_server_metadata": "ours is bounded, checked, and fetched with the keys",
        "parse_id_token": "ours takes public keys alone, each with its algorithms",
    },
    ("authlib", "authlib.integrations.starlette_client:StarletteIntegration", "adapters/auth/oidc.py"): {
        "get_state_data": "what is kept in a cookie of ours until the browser is back",
        "set_state_data": "what it brings back",
    },
    ("starlette", "starlette.responses:StreamingResponse", "adapters/sse/stream.py"): {
        "__call__": "ours waits for the client to go, and iterates over nothing",
        "status_code": "middleware reads it",
        "raw_headers": "middleware reads them",
        "background": "there is none",
    },
    ("starlette", "starlette.applications:Starlette", "adapters/http/dispatch.py"): {
        "__call__": "our own way in",
        "build_middleware_stack": "one layer for errors, and the hot endpoints found by their path",
        "user_middleware": "what goes around it",
        "router": "what it asks for all other endpoints",
    },
    ("starlette", "starlette.staticfiles:StaticFiles", "adapters/http/pages.py"): {"get_response": "headers of files"},
    ("starlette", "starlette.convertors:PathConvertor", "entrypoints/app.py"): {"regex": "a name may have line ends"},
    ("starlette", "starlette.routing:Mount", "entrypoints/app.py"): {
        "matches": "a prefix leaves to others what it has no route for",
        "routes": "what it has routes for",
    },
    ("starlette", "starlette.routing", "entrypoints/app.py"): {"Match": "what `matches` answers"},
}  # fmt: skip
PRIVATE = [
    Private(*key[:2], name, key[2], why)
    for key, names in TABLE.items()
    for name, why in names.items()
]

# Ours, and what they extend.
SUBCLASSES = [
    (protocol.State, ServerState),
    (server.Server, uvicorn.Server),
    (tokens._Registry, JWSRegistry),
    (oidc._Client, StarletteOAuth2App),
    (stream.EventStream, StreamingResponse),
    (dispatch.Service, Starlette),
    (pages._Files, StaticFiles),
    (app._Under, Mount),
]


@pytest.mark.parametrize("private", PRIVATE, ids=str)
def test_a_private_name_is_where_it_was(private: Private) -> None:
    name, _, given = private.name.rstrip(")").partition("(")
    module, _, owner_name = private.owner.partition(":")
    owner: Any = import_module(module)
    if owner_name:
        owner = getattr(owner, owner_name)
    gone = f"{private.library} {version(private.library)} has no {private} any more; it is for: {private.why}"
    assert hasattr(owner, name) or name in given_to_objects(owner), gone
    if given:
        assert {*given.split(", ")} <= parameters(owner, name), gone
    mentioned = owner_name if name == "__init__" else name
    assert mentioned in (ROOT / "src" / "msgpush" / private.where).read_text(), (
        "a row that nobody needs"
    )


def given_to_objects(owner: Any) -> set[str]:
    """The attributes that a class gives to its objects, as far as its text says it."""
    classes = owner.__mro__[:-1] if inspect.isclass(owner) else ()
    return {
        name
        for each in classes
        for name in re.findall(r"\bself\.(\w+)\b[^=\n]*=[^=]", text_of(each))
    }


def text_of(owner: type) -> str:
    try:
        return inspect.getsource(owner)
    except (OSError, TypeError):  # it is written in C
        return ""


def parameters(owner: Any, name: str) -> set[str]:
    """The parameters of a function; of a class's constructor, with those that it passes on to its
    bases.
    """
    functions = (
        [vars(each).get(name) for each in owner.__mro__]
        if inspect.isclass(owner)
        else [getattr(owner, name)]
    )
    return {
        each
        for function in functions
        if inspect.isfunction(function)
        for each in inspect.signature(function).parameters
    }


def overridden() -> list[tuple[type, type, str]]:
    special = (
        "__module__",
        "__doc__",
        "__qualname__",
        "__dict__",
        "__weakref__",
        "__annotations__",
        "__init__",
    )
    return [
        (ours, base, name)
        for ours, base in SUBCLASSES
        for name in vars(ours)
        if hasattr(base, name) and name not in special
    ]


@pytest.mark.parametrize(("ours", "base", "name"), overridden())
def test_what_ours_replaces_is_in_the_table_and_takes_the_same(
    ours: type, base: type, name: str
) -> None:
    listed = {
        private.name.partition("(")[0]
        for private in PRIVATE
        if private.owner.endswith(f":{base.__name__}")
    }
    assert name in listed
    new, old = getattr(ours, name), getattr(base, name)
    if inspect.isfunction(new):
        assert [*inspect.signature(new).parameters] == [*inspect.signature(old).parameters]


def test_whoever_has_private_names_here_is_bounded_at_what_was_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {re.split(r"[\[<>=]", text)[0]: text for text in project["dependencies"]}
    pinned = dict(
        re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    pinned = {name.lower().replace("_", "-"): pin for name, pin in pinned.items()}
    for library in {private.library for private in PRIVATE}:
        upper = re.search(r"<(\d+)\.(\d+)$", bounds[library])
        assert upper is not None, f"{library} has no upper bound in pyproject.toml"
        tested = tuple(map(int, re.findall(r"\d+", pinned[library])[:2]))
        assert tested < (int(upper[1]), int(upper[2])) == (tested[0], tested[1] + 1)


def test_everything_that_is_installed_is_pinned_and_nothing_else_is_said() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines[0].startswith("# Made by `make constraints`")
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines[1:]), (
        "names and releases alone"
    )
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines[1:]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["client"],
        *project["project"]["optional-dependencies"]["oidc"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]
    assert {re.split(r"[\[<>=]", text)[0] for text in wanted} - {"msgpush"} <= pinned
