"""Writes the tables anew that are the code's, the README's of settings, and that of metrics:
`python -m tests.support.readme`.
"""

import re
from pathlib import Path

from msgpush.adapters.metrics.families import FAMILIES
from msgpush.entrypoints.settings import markdown_table

ROOT = Path(__file__).parents[2]


def metrics_table() -> str:
    """The table of metrics, as docs/monitoring.md has it."""
    rows = ["| metric | kind | labels | what it is |", "|---|---|---|---|"]
    for name, family in FAMILIES.items():
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(rows) + "\n"


def write(page: str, name: str, table: str) -> None:
    """Put a table between the marks of this name."""
    form = re.compile(rf"(<!-- {name} -->\n).*(<!-- /{name} -->)", re.DOTALL)
    text = (ROOT / page).read_text()
    (ROOT / page).write_text(form.sub(lambda match: match[1] + table + match[2], text))


if __name__ == "__main__":
    write("README.md", "settings", markdown_table())
    write("docs/monitoring.md", "metrics", metrics_table())
