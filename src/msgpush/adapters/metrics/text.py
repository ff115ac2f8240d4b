"""The text that Prometheus reads (its exposition format, version 0.0.4)."""

import asyncio
import time
from collections.abc import Iterator
from itertools import accumulate

from msgpush.adapters.metrics.families import FAMILIES, Family, Figures, Value

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SLICE = 0.001  # seconds of work after which the loop gets its turn

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


async def render(figures: Figures) -> bytes:
    """The text of some figures; others have their turn while it is made."""
    parts: list[str] = []
    until = time.monotonic() + SLICE
    for part in _parts(figures):
        parts.append(part)
        if time.monotonic() >= until:
            await asyncio.sleep(0)
            until = time.monotonic() + SLICE
    text = "".join(parts)
    await asyncio.sleep(0)
    return text.encode()


def _parts(figures: Figures) -> Iterator[str]:
    for name, family in FAMILIES.items():
        series = figures.get(name)
        if not series:
            continue
        help = family.help.replace("\\", r"\\").replace("\n", r"\n")
        yield f"# HELP {name} {help}\n# TYPE {name} {family.kind}\n"
        for values, value in series.items():
            yield _lines(name, family, values, value)


def _lines(name: str, family: Family, values: tuple[str, ...], value: Value) -> str:
    pairs = sorted(zip(family.labels, values, strict=True))
    labels = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in pairs)
    if not isinstance(value, list):
        return f"{name}{{{labels}}} {_number(value)}\n" if labels else f"{name} {_number(value)}\n"
    *counts, total = value
    before = f"{labels}," if labels else ""
    bounds = (*map(_number, family.bounds), "+Inf")
    sums = [*accumulate(counts)]
    lines = [
        f'{name}_bucket{{{before}le="{bound}"}} {_number(number)}\n'
        for bound, number in zip(bounds, sums, strict=True)
    ]
    own = f"{{{labels}}}" if labels else ""
    lines.append(f"{name}_count{own} {_number(sums[-1])}\n{name}_sum{own} {_number(total)}\n")
    return "".join(lines)


def _number(value: float) -> str:
    return repr(float(value)) if value != float("inf") else "+Inf"
