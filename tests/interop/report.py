"""The table of docs/clients.md and its translation."""

from collections.abc import Sequence
from pathlib import Path

from tests.interop.registry import CHECKS, Client
from tests.interop.scenario import EXACT, STOPS, Outcome

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "clients.md", DOCS / "clients.zh-CN.md")
BEGIN, END = "<!-- interop -->", "<!-- /interop -->"


def row(client: Client, outcome: Outcome) -> str:
    """A client's line of the table: a star where the program has to help."""
    cells = [
        f"{found} \\*" if found in (EXACT, STOPS) and check in client.needs else found
        for check, found in outcome.items()
    ]
    notes = [*dict.fromkeys(client.needs.values()), client.remark]
    told = " ".join(each for each in notes if each)
    return "| " + " | ".join([client.label, client.version or "any", *cells, told]) + " |"


def table(clients: Sequence[Client], outcomes: Sequence[Outcome]) -> str:
    """The whole table, in markdown."""
    titles = ["client", "release", *CHECKS, "what your program has to do"]
    head = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return "\n".join([*head, *map(row, clients, outcomes)])


def written() -> str:
    """The table that the pages have."""
    return PAGES[0].read_text().partition(BEGIN)[2].partition(END)[0].strip()


def write(text: str) -> None:
    """Put a table into the pages, between their two marks."""
    for page in PAGES:
        before, begin, rest = page.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        assert begin + end == BEGIN + END, f"{page} lacks a mark"
        page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
