"""Values as error messages name them: short, on one line, and nothing that a terminal obeys."""

import json


def short_repr(value: object) -> str:
    """A value as an error message names it: in JSON, short, and on one line."""
    if isinstance(value, str):
        value = value[:80]  # more of it isn't shown
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = f"a deeply nested {'object' if isinstance(value, dict) else 'array'}"
    return short_json(text)


def short_json(text: str) -> str:
    """A JSON text as an error message shows it: short, and on one line, whatever it has."""
    short = text if len(text) <= 80 else f"{text[:77]}..."
    return short if short.isprintable() else "".join(map(_printable, short))


def _printable(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]
