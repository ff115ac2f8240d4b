"""Writes the README's table of settings anew: `python -m tests.support.readme`."""

import re
from pathlib import Path

from msgpush.entrypoints.settings import markdown_table

if __name__ == "__main__":
    readme = Path(__file__).parents[2] / "README.md"
    form = re.compile(r"(<!-- settings -->\n).*(<!-- /settings -->)", re.DOTALL)
    readme.write_text(
        form.sub(lambda match: match[1] + markdown_table() + match[2], readme.read_text())
    )
