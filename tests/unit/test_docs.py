"""What the documents say is true: their programs run, their tables are the code's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from msgpush.adapters.metrics.families import FAMILIES
from msgpush.adapters.registry.registration import Report
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings, markdown_table
from tests.support.asgi import AsgiDriver
from tests.support.fakes import make
from tests.support.readme import metrics_table

ROOT = Path(__file__).parents[2]


def programs(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


PAGES = [
    *sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("*.md")),
    *sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/*.md")),
    "clients/js/README.md",
]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> list[str]:
    """What links may name behind `#`: the headings, as GitHub and others make anchors of them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        before = found.count(anchor)
        found.append(f"{anchor}-{before}" if before else anchor)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_to_a_file_and_a_heading_that_are_there(page: str) -> None:
    source = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(source)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = source.parent / path if path else source
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES)
def test_a_file_that_is_named_is_there(page: str) -> None:
    folders = "bench|clients|demo|deploy|docs|src|tests"
    named = re.findall(rf"`((?:{folders})/[\w./-]+|[A-Z][A-Za-z.-]+\.md)`", prose(ROOT / page))
    assert [name for name in named if not (ROOT / name).exists()] == []
    sections = re.findall(r"`(docs/[\w.-]+\.md)`,\s+\"([^\"]+)\"", prose(ROOT / page))
    for file, section in sections:
        assert section.lower().replace(" ", "-") in anchors(ROOT / file), section


def test_every_page_of_the_docs_can_be_found_from_the_readme() -> None:
    for page in ROOT.glob("docs/*.md"):
        name = page.name.replace(".zh-CN", "")
        assert f"docs/{name}" in (ROOT / "README.md").read_text()


def test_the_readme_shows_the_settings_as_they_are() -> None:
    table = re.search(
        r"<!-- settings -->\n(.*)<!-- /settings -->", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert table is not None
    assert table[1] == markdown_table(), "run: python -m tests.support.readme"


def test_the_table_of_metrics_is_the_codes() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    table = re.search(r"<!-- metrics -->\n(.*)<!-- /metrics -->", text, re.DOTALL)
    assert table is not None
    assert table[1] == metrics_table(), "run: python -m tests.support.readme"


async def test_the_metrics_of_the_table_are_those_that_there_are() -> None:
    registered = Report("etcd", "registered", 0.0)
    async with lifespan(app := create_app(Settings(), reports=lambda: [registered])):
        client = AsgiDriver(app)
        tally = app.state.tally
        async with client.stream("/sse/stream/a") as stream:
            await client.send(b'{"type":"info","service":"s","channels":["a"]}')
            await stream.read_until(b'"info"')
        await client.send(b"{")
        # What would take a while, or a second client.
        tally.refused("rate")
        tally.acknowledged("s", "info", 0.1)
        tally.redelivered([make("1", "a")])
        tally.died("s", "info", "expired")
        tally.pushed("s", "info", "webpush", "sent", 0.1)
        text = (await client.request("GET", "/metrics")).body.decode()
    found = {
        family.name + "_total" * (family.type == "counter"): family.type
        for family in text_string_to_metric_families(text)
    }
    assert found == {name: family.kind for name, family in FAMILIES.items()}


def outline(document: str) -> list[str]:
    """The levels of a page's headings, its blocks of code, and its tables' rows as their widths."""
    text = (ROOT / document).read_text()
    outline = []
    for part in re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL):
        if part.startswith("```"):
            outline.append(part)
        else:
            outline += re.findall(r"^#+(?= )", part, re.MULTILINE)
            outline += [row.count("|") * "|" for row in re.findall(r"^\|.*", part, re.MULTILINE)]
    return outline


@pytest.mark.parametrize("page", ["README", "docs/clients"])
def test_a_translation_has_the_same_headings_code_and_tables(page: str) -> None:
    assert outline(f"{page}.zh-CN.md") == outline(f"{page}.md")


def test_the_translation_has_the_table_that_the_clients_run_has_made() -> None:
    made = [
        (ROOT / "docs" / name).read_text().partition("<!-- interop -->")[2]
        for name in ("clients.md", "clients.zh-CN.md")
    ]
    tables = [each.partition("<!-- /interop -->")[0] for each in made]
    assert tables[0] == tables[1] != ""


def test_the_program_that_embeds_the_domain_runs() -> None:
    result = subprocess.run(
        [sys.executable, "-c", programs("docs/embedding.md")[0]],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    published, received = result.stdout.splitlines()
    assert received == published.replace("published", "received")


def test_the_program_whose_listener_is_told_of_its_end_runs() -> None:
    result = subprocess.run(
        [sys.executable, "-c", programs("docs/embedding.md")[2]],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert result.stdout.splitlines() == ["received m1", "the end: drain"]


async def test_the_application_that_mounts_the_service_runs() -> None:
    names: dict[str, object] = {}
    exec(programs("docs/embedding.md")[1], names)
    app = names["app"]
    assert isinstance(app, Starlette)
    async with app.router.lifespan_context(app):
        client = AsgiDriver(app)
        async with client.stream("/push/sse/stream/orders") as stream:
            await stream.read_until(b"\n\n")
            published = (await client.request("POST", "/order")).json()["published"]
            await stream.read_until(published.encode())


def test_the_readmes_job_says_how_far_it_is() -> None:
    from tests.support.client import request
    from tests.support.service import ThreadedService

    (program,) = programs("README.md")
    with ThreadedService() as service:
        exec(program.replace("127.0.0.1:8089", f"127.0.0.1:{service.port}"), {})
        answer = request(service.port, "GET", "/api/v1/channels/user:123/messages")
    types = [message["type"] for message in answer.json()["messages"]]
    assert (types[0], *types[-2:]) == ("status", "progress", "success")
    assert set(types[1:-1]) == {"progress"}


def test_the_domain_and_the_memory_bus_need_nothing_but_msgspec() -> None:
    program = f"""
import asyncio, importlib.abc, sys

class Only(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in sys.stdlib_module_names | {{"msgspec", "msgpush"}}:
            raise ImportError("not here: " + name)

sys.meta_path.insert(0, Only())
sys.path.insert(0, {str(ROOT / "src")!r})
from msgpush.adapters.memory.bus import MemoryBus
from msgpush.domain import Push, parse

async def main():
    async with Push(MemoryBus()) as push:
        await push.publish(parse(b'{{"type":"info","service":"s","channels":["a"],"id":"m1"}}'))
        async for item in push.listen("a", after="earliest"):
            print(item.id)
            return

asyncio.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.stdout == "m1\n", result.stderr
