"""Tells Kubernetes which pods have the fewest streams, so that these go first.

A ReplicaSet that loses replicas deletes those pods first whose annotation
`controller.kubernetes.io/pod-deletion-cost` is lowest
(https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#pod-deletion-cost). This
sets it to what each pod says in /metrics. It runs in the cluster, with a service account that may
get, list and patch pods, and needs only the standard library:

    python deletion_cost.py --selector app.kubernetes.io/name=msgpush --every 30

Each write is work for the API server, so a cost is written only where it is off by more than a
tenth, and by more than ten streams.
"""

import argparse
import http.client
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
COST = "controller.kubernetes.io/pod-deletion-cost"
STREAMS = re.compile(r"^message_push_connections_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
PATIENCE = 5.0
# What an answer may end in, that is none or no use.
BROKEN = (OSError, ValueError, http.client.HTTPException)


class Refused(Exception):
    """The API server has refused what a right is missing for: it won't be better next time."""


class Cluster:
    """The API server, as a pod reaches it.

    The account's token is read each time, since it is renewed in its file."""

    def __init__(self, account: Path) -> None:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        self._url = f"https://{bracketed(host)}:{port}"
        self._account = account
        context = ssl.create_default_context(cafile=str(account / "ca.crt"))
        self._opener = opener(urllib.request.HTTPSHandler(context=context))
        self.namespace = (account / "namespace").read_text().strip()

    def pods(self, selector: str) -> list[dict]:
        """The pods that serve, and aren't being deleted."""
        found: list[dict] = []
        following = ""
        while True:
            query = {"labelSelector": selector, "limit": "200", "continue": following}
            page = self._ask("GET", "pods?" + urllib.parse.urlencode(query))
            found += page["items"]
            if not (following := page["metadata"].get("continue", "")):
                return [each for each in found if serves(each)]

    def set_cost(self, pod: dict, cost: int) -> bool:
        """Write a pod's cost; False: it has gone, or another one has its name."""
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        # With the uid, the API server refuses it where the name has gone to another pod.
        change = {"metadata": {"uid": uid, "annotations": {COST: str(cost)}}}
        try:
            self._ask("PATCH", f"pods/{urllib.parse.quote(name)}", change)
        except urllib.error.HTTPError as error:
            if error.code in (404, 409):
                return False
            raise
        return True

    def _ask(self, method: str, path: str, change: object = None) -> dict:
        token = (self._account / "token").read_text().strip()
        request = urllib.request.Request(
            f"{self._url}/api/v1/namespaces/{urllib.parse.quote(self.namespace)}/{path}",
            json.dumps(change).encode() if change is not None else None,
            {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
            method=method,
        )
        try:
            with self._opener.open(request, timeout=PATIENCE) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code == 403:
                raise Refused(f"{method} {path.partition('?')[0]}: {reason(error)}") from None
            raise


def opener(*handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """Requests that go through no proxy, whatever `http_proxy` says."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)


def reason(error: urllib.error.HTTPError) -> str:
    """What the API server says of an error: the right that is missing, say."""
    try:
        return str(json.load(error)["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"


def serves(pod: dict) -> bool:
    """Whether a pod runs, has an address, and isn't on its way out."""
    status = pod["status"]
    return (
        status.get("phase") == "Running"
        and bool(status.get("podIP"))
        and "deletionTimestamp" not in pod["metadata"]
    )


def bracketed(host: str) -> str:
    """A host as a URL has it."""
    return f"[{host}]" if ":" in host else host


class Streams:
    """How many streams a pod has, by its own word."""

    def __init__(self, port: int, token_file: str | None) -> None:
        self._port, self._token_file = port, token_file
        self._opener = opener()

    def of(self, pod: dict) -> int | None:
        """None: it doesn't say."""
        headers = {}
        if self._token_file:
            headers["Authorization"] = f"Bearer {Path(self._token_file).read_text().strip()}"
        url = f"http://{bracketed(pod['status']['podIP'])}:{self._port}/metrics"
        try:
            request = urllib.request.Request(url, headers=headers)
            with self._opener.open(request, timeout=PATIENCE) as response:
                found = STREAMS.findall(response.read().decode())
        except BROKEN:
            return None
        return int(sum(map(float, found))) if found else None


def differs(known: str | None, cost: int) -> bool:
    """Whether a cost is worth being written."""
    try:
        before = int(known) if known is not None else None
    except ValueError:
        before = None
    return before is None or abs(cost - before) > max(10, before // 10)


def step(cluster: Cluster, selector: str, streams: Streams) -> dict[str, int]:
    """Write the costs that have changed; those written, by pod."""
    written = {}
    for pod in cluster.pods(selector):
        cost = streams.of(pod)
        # A pod that doesn't answer keeps what it has: it may have many streams.
        if cost is None or not differs(pod["metadata"].get("annotations", {}).get(COST), cost):
            continue
        if cluster.set_cost(pod, cost):
            written[pod["metadata"]["name"]] = cost
    return written


def main() -> int:
    """Look, write, wait; for ever, or once. Ends with 1 where a right is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--selector", default="app.kubernetes.io/name=msgpush", help="of the pods")
    parser.add_argument("--port", type=int, default=8089, help="that pods serve /metrics at (8089)")
    parser.add_argument("--metrics-token-file", help="a file with METRICS_TOKEN, where it is set")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two looks (30)")
    parser.add_argument("--once", action="store_true", help="look once, and end")
    parser.add_argument("--account", type=Path, default=Path(ACCOUNT), help="the account's files")
    options = parser.parse_args()
    try:
        cluster = Cluster(options.account)
    except (KeyError, OSError) as error:
        print(f"this runs in a pod, with a service account: {error!r}", file=sys.stderr)
        return 2
    streams = Streams(options.port, options.metrics_token_file)
    while True:
        status = 0
        try:
            for name, cost in step(cluster, options.selector, streams).items():
                print(f"{name} {cost}", flush=True)
        except Refused as error:
            print(f"refused: {error}", file=sys.stderr)
            return 1
        except (*BROKEN, KeyError) as error:
            # The API server is busy or away, say: the next look may do better.
            print(f"not now: {error}", file=sys.stderr, flush=True)
            status = 1
        if options.once:
            return status
        time.sleep(options.every)


if __name__ == "__main__":
    sys.exit(main())
