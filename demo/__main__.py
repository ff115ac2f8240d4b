"""`make demo`: starts the service and the worker, and says where to look."""

import argparse
import signal
import socket
import sys
import threading
from pathlib import Path

from demo.processes import ROOT, Process
from demo.worker import CHANNEL, MESSAGES_A_FILE, RECEIPTS, SERVICE, Stopped, Worker
from msgpush.client import Gap, MsgpushError, Opened, Publisher, SyncListener, SyncMessage

WORDS_SLOWER = 1.6  # than chunks are
DIRECT = {"trust_env": False}  # the service is on this machine: no proxy is asked for it


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit status: 0, or 1 where it couldn't do as it was asked."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Index a folder and watch it live in a page."
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT,
        help="the documents to index (default: this repository)",
    )
    parser.add_argument(
        "--port", type=int, help="the service's port (default: 8089, or a free one)"
    )
    parser.add_argument(
        "--pace",
        type=float,
        default=0.05,
        help="seconds that a chunk takes at least (default: 0.05)",
    )
    parser.add_argument("--limit", type=int, default=150, help="files at most (default: 150)")
    parser.add_argument("--once", action="store_true", help="end when the job is done")
    options = parser.parse_args(argv)
    if not options.folder.is_dir():
        parser.error(f"--folder: {options.folder} is no folder")
    if options.port is not None and not 1 <= options.port <= 65535:
        parser.error("--port: it must be from 1 to 65535")
    if not 0 <= options.pace <= 60:
        parser.error("--pace: it must be from 0 to 60")
    if not 1 <= options.limit <= 10_000:
        parser.error("--limit: it must be from 1 to 10000")

    stop = _stop_at_signals()
    port = options.port or _free_port()
    url = f"http://127.0.0.1:{port}"
    # Twice what a job reports: a restart in its middle has the worker say it again.
    history = 2 * MESSAGES_A_FILE * (options.limit + 1)
    flags = [f"--service-port={port}", f"--history-length={history}", "--drain-seconds=1"]
    service = Process(
        ["-m", "demo.app", *flags],
        "The service is process {pid}. To see it forget everything and come back: kill {pid}",
    )
    writer = Process(
        ["-m", "demo.answer", url, str(WORDS_SLOWER * options.pace)],
        "Who writes the answer is process {pid}. To see it go on after a restart: kill {pid}",
    )
    try:
        if not (service.start() and writer.start()):
            return 1
        return _run(url, options, stop)
    finally:
        stop.set()
        writer.stop()
        service.stop()


def _run(url: str, options: argparse.Namespace, stop: threading.Event) -> int:
    """Do the job while the page shows it; returns the exit status."""
    with Publisher(
        url, service=SERVICE, source="folder", on_error=_complain, http=DIRECT
    ) as publisher:
        worker = Worker(
            options.folder.resolve(),
            publisher,
            pace=options.pace,
            limit=options.limit,
            stop=stop,
        )
        opened = threading.Event()
        threading.Thread(target=_listen, args=(url, worker, opened), daemon=True).start()
        # Nothing is reported before the worker would see that it was lost.
        while not opened.wait(0.1) and not stop.is_set():
            pass
        print(
            f"\n  Open {url}/demo/ and watch the documents being indexed, and an answer being"
            " written.\n  The worker asks you something there, again and again until you answer."
            "\n  Reload the page whenever you like: it shows the same. Ctrl-C ends the demo.\n",
            flush=True,
        )
        try:
            worker.run()
        except Stopped:
            return 1 if options.once else 0
        publisher.flush()
        print("  The job is done.", flush=True)
        if not options.once:
            stop.wait()
        return 0


def _listen(url: str, worker: Worker, opened: threading.Event) -> None:
    """Have the worker told of receipts, and of a log that is lost; from `opened` on it is."""
    for event in SyncListener(url, channels=[CHANNEL, RECEIPTS], http=DIRECT):
        match event:
            case Opened():
                opened.set()
            case Gap(reason="reset"):
                worker.tell_again()
            case SyncMessage():
                worker.receive(event)


def _complain(error: MsgpushError) -> None:
    print(f"  {error}", file=sys.stderr)


def _stop_at_signals() -> threading.Event:
    """An event that is set when this process is told to end."""
    stop = threading.Event()
    received, sent = socket.socketpair()
    sent.setblocking(False)

    def wait() -> None:
        received.recv(1)
        stop.set()

    # Not set in the handler: that runs in the main thread, which may hold the event's lock just
    # then.
    threading.Thread(target=wait, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(sent.detach())
    return stop


def _free_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8089))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
