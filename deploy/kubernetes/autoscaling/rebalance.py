"""Moves streams from instances that have too many to those that have few, gently.

A stream stays where it is until it ends. So an instance that is new has few, and its elders stay
full. This closes some streams of the fullest, a few each second; their clients come back within 2
to 5 seconds, with their cursors, and miss nothing. It does that by the service's own API, so it may
run anywhere:

    python rebalance.py --url http://msgpush:8089 --token-file /run/secrets/msgpush/token

The proxy decides where they go: "least connections" sends them where there is room; round robin
takes longer. Only the standard library is used.
"""

import argparse
import http.client
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PATIENCE = 10.0


class Service:
    """The service's API, as an admin uses it."""

    def __init__(self, url: str, token_file: str | None) -> None:
        self._url, self._token_file = url.rstrip("/"), token_file

    def counts(self) -> dict[str, int]:
        """The streams of each instance that takes new ones."""
        return {
            each["node"]: sum(each["streams"].values())
            for each in self._ask("GET", "/api/v1/instances")["instances"]
            if each["ready"] and not each["draining"]
        }

    def close(self, node: str, number: int) -> int:
        """Close some streams of an instance; how many there were to close."""
        query = urllib.parse.urlencode({"node": node, "limit": min(number, 1000)})
        found = self._ask("GET", f"/api/v1/connections?{query}")["connections"]
        for each in found:
            try:
                self._ask("DELETE", f"/api/v1/connections/{each['id']}?reconnect=true")
            except urllib.error.HTTPError as error:
                if error.code != 404:  # it has gone meanwhile
                    raise
        return len(found)

    def _ask(self, method: str, path: str) -> dict:
        headers = {}
        if self._token_file:
            with open(self._token_file) as file:
                headers["Authorization"] = f"Bearer {file.read().strip()}"
        request = urllib.request.Request(self._url + path, method=method, headers=headers)
        with OPENER.open(request, timeout=PATIENCE) as response:
            return json.loads(response.read() or b"{}")


def too_many(counts: dict[str, int], ratio: float) -> dict[str, int]:
    """The streams above the average, of each instance that has more than `ratio` times that."""
    if len(counts) < 2:
        return {}
    average = sum(counts.values()) / len(counts)
    above = {node: int(number - average) for node, number in counts.items()}
    # Less than one above it is as near as whole streams come.
    return {node: above[node] for node in counts if counts[node] > ratio * average and above[node]}


def step(service: Service, most: int, ratio: float, least: int) -> int:
    """Close what may be closed now; how many that were.

    Args:
        most: streams that may be closed, of all instances together.
        ratio: what an instance may have, in averages.
        least: with fewer streams altogether nothing is done.
    """
    counts = service.counts()
    if sum(counts.values()) < least:
        return 0
    closed = 0
    above = too_many(counts, ratio)
    for node, number in sorted(above.items(), key=lambda item: -item[1]):
        share = max(1, most * number // sum(above.values()))
        closed += service.close(node, min(number, share, most - closed)) if closed < most else 0
    return closed


def main() -> int:
    """Look, move, wait; for ever, or once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="of the service, or of the proxy before it")
    parser.add_argument("--token-file", help="a file with an admin's token; read each time")
    parser.add_argument("--per-second", type=int, default=10, help="streams moved, at most (10)")
    parser.add_argument("--ratio", type=float, default=1.1, help="averages that are left be (1.1)")
    parser.add_argument(
        "--least", type=int, default=100, help="streams below which nothing is done (100)"
    )
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks (1)")
    parser.add_argument("--once", action="store_true", help="look once, and end")
    options = parser.parse_args()
    if options.per_second < 1 or options.ratio < 1 or options.every <= 0:
        parser.error("--per-second and --ratio are 1 or more, --every is more than 0")
    service = Service(options.url, options.token_file)
    most = max(1, int(options.per_second * options.every))
    while True:
        began = time.monotonic()
        try:
            if closed := step(service, most, options.ratio, options.least):
                print(f"moved {closed}", flush=True)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403) and options.once:
                print(f"refused with {error.code}: it takes an admin's token", file=sys.stderr)
                return 1
            print(f"not now: {error}", file=sys.stderr, flush=True)
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            print(f"not now: {error}", file=sys.stderr, flush=True)
        if options.once:
            return 0
        # Counted from when it was begun, and never more at once to make up for lost time.
        time.sleep(max(0.1, options.every - (time.monotonic() - began)))


if __name__ == "__main__":
    sys.exit(main())
