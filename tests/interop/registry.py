"""The clients that are tried: one row each. Another one is a program in `clients`, a row here, and
`python -m tests.interop --write`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CLIENTS = Path(__file__).parent / "clients"

# What is tried, in the order of the page's columns.
CHECKS = ("messages", "end", "reset", "last", "restart", "overload", "stop")


@dataclass(frozen=True)
class Client:
    """A client of others.

    Args:
        name: as its registry has it; `label` is what the page calls it, with its language.
        kind: how its program is built and run: a key of `programs.PROGRAMS`.
        program: the program's file, or package.
        needs: what a program must do beside calling the library, by the check that needs it.
        remark: what else a user should know.
    """

    name: str
    label: str
    kind: str
    program: str
    needs: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""

    @property
    def version(self) -> str:
        """The release that is pinned; empty for a program of the machine's."""
        match self.kind:
            case "node" | "page":
                pinned = json.loads((CLIENTS / "js/package.json").read_text())["dependencies"]
                return str(pinned.get(self.name, ""))
            case "python":
                return _found(rf"^{self.name}==(.+)$", "python/requirements.txt")
            case "go":
                return _found(rf"{re.escape(self.name)} v(\S+)", "go/go.mod")
            case "java":
                artifact = self.name.rpartition(":")[2]
                where = rf"<artifactId>{artifact}</artifactId>\s*<version>(.+?)</version>"
                return _found(where, "java/pom.xml")
        return ""


def _found(pattern: str, file: str) -> str:
    match = re.search(pattern, (CLIENTS / file).read_text(), re.MULTILINE)
    assert match is not None, (pattern, file)
    return match[1]


def _after(text: str, **others: str) -> dict[str, str]:
    """A program that has to help after whatever ends a stream."""
    return {**dict.fromkeys(("end", "reset", "last", "restart", "overload"), text), **others}


_OWN_LOOP = "It parses one response: the loop, the cursor and the wait are yours."
_OVER_AT_204 = "End the loop at 204."

REGISTRY = (
    Client("EventSource", "`EventSource`, in a browser", "page", "native.mjs"),
    Client("eventsource", "npm `eventsource`", "node", "eventsource.mjs"),
    Client("eventsource-client", "npm `eventsource-client`", "node", "eventsource-client.mjs"),
    Client(
        "@microsoft/fetch-event-source",
        "npm `@microsoft/fetch-event-source`",
        "page",
        "fetch-event-source.mjs",
        {
            **dict.fromkeys(("end", "restart", "overload"), "Throw in `onclose`."),
            "stop": "Throw at 204, in `onopen` and again in `onerror`.",
        },
        "It takes the cursor before the event is whole: a cut just before the last byte of a message loses that one.",
    ),
    Client(
        "event-source-polyfill", "npm `event-source-polyfill`", "page", "event-source-polyfill.mjs"
    ),
    Client(
        "reconnecting-eventsource",
        "npm `reconnecting-eventsource`",
        "page",
        "reconnecting-eventsource.mjs",
        {"stop": 'Close it at `"reconnect":false`.'},
        "Use `addEventListener` for each name, `message` too: it takes no cursor from what goes to `onmessage`.",
    ),
    Client(
        "httpx-sse",
        "PyPI `httpx-sse`",
        "python",
        "with_httpx_sse",
        _after(_OWN_LOOP, stop=_OVER_AT_204),
        "Give reading more than the heartbeat's 30 seconds; HTTPX's default is 5.",
    ),
    Client(
        "sseclient-py",
        "PyPI `sseclient-py`",
        "python",
        "with_sseclient",
        _after(_OWN_LOOP, stop=_OVER_AT_204),
    ),
    Client(
        "aiohttp-sse-client2",
        "PyPI `aiohttp-sse-client2`",
        "python",
        "with_aiohttp_sse_client2",
        _after(
            "Raise in `on_error`, and open each stream anew with `Last-Event-ID`: its own reconnect waits twice as long as "
            "asked, and ends at the first connection that is refused.",
            stop='Close it at `"reconnect":false`.',
        ),
        "A session with `ClientTimeout(total=None)`: by default a stream ends after five minutes.",
    ),
    Client(
        "launchdarkly-eventsource",
        "PyPI `launchdarkly-eventsource`",
        "python",
        "with_launchdarkly",
        _after(
            "`ErrorStrategy.always_continue()`, and wait at each `Fault` yourself: it takes no notice of `retry:`, and once a "
            "connection was refused it waits no more at all.",
            stop="Close it at the `Fault` of the 204.",
        ),
    ),
    Client(
        "github.com/r3labs/sse/v2",
        "Go `r3labs/sse`",
        "go",
        "r3labs",
        _after(
            "Subscribe anew after the end of each response, with `StopBackOff`. Drop events whose data isn't JSON: what a "
            "cut has left of one comes, too; then set `LastEventID` to that of the last whole one.",
            messages="`ClientMaxBufferSize(1 << 20)`: by default it never gets past a message of 64 KiB.",
            stop="End the loop at 204, by a `ResponseValidator`.",
        ),
    ),
    Client(
        "github.com/tmaxmax/go-sse",
        "Go `tmaxmax/go-sse`",
        "go",
        "tmaxmax",
        {"messages": "`Buffer(nil, 1<<20)`: by default it never gets past a message of 64 KiB."},
    ),
    Client(
        "com.launchdarkly:okhttp-eventsource",
        "Java `okhttp-eventsource`",
        "java",
        "OkHttpEventSource",
        _after(
            "`ErrorStrategy.alwaysContinue()`, and `backoffMultiplier(1)`: by default it waits twice as long each time that a "
            "stream has ended within a minute.",
            stop='Close it at `"reconnect":false`: a 204 is an empty stream to it.',
        ),
    ),
    Client(
        "curl",
        "`curl -N`",
        "shell",
        "curl.sh",
        _after(
            "The loop, the blocks, the cursor and the wait are your script's.", stop=_OVER_AT_204
        ),
    ),
)
