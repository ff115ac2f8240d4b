"""The pages and the files that they are made of, in process."""

import re
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from urllib.parse import urljoin

import pytest

from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import AsgiDriver

FOLDER = Path(str(resources.files("msgpush.adapters.http") / "static"))
SHIPPED = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file())
OWN = [name for name in SHIPPED if not name.startswith(("swagger-ui/", "admin/vendor/"))]
ADMIN_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
TYPES = {
    ".html": {"text/html"},
    ".css": {"text/css"},
    ".js": {"text/javascript", "application/javascript"},
    ".svg": {"image/svg+xml"},
    ".txt": {"text/plain"},
    "": {"text/plain", "application/octet-stream"},
}


@pytest.fixture
async def client() -> AsyncIterator[AsgiDriver]:
    async with lifespan(app := create_app(Settings())):
        yield AsgiDriver(app)


@pytest.mark.parametrize("path", ["/", "/docs", "/admin/"])
async def test_a_page_loads_only_what_is_shipped_with_it(client: AsgiDriver, path: str) -> None:
    page = await client.request("GET", path)
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    text = page.body.decode()
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert sources
    for source in sources:
        assert not re.match(r"/|\w+:", source), "relative: right under any prefix"
        assert (await client.request("GET", urljoin(path, source))).status == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/admin/"])
async def test_a_page_runs_under_a_policy_that_allows_nothing_inline_and_nothing_from_elsewhere(
    client: AsgiDriver, path: str
) -> None:
    page = await client.request("GET", path)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", page.body.decode())


@pytest.mark.parametrize("path", ["/", "/docs", "/admin/"])
async def test_a_page_can_not_be_framed_nor_taken_for_another_type_nor_tell_where_its_reader_was(
    client: AsgiDriver, path: str
) -> None:
    page = await client.request("GET", path)
    assert page.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("name", OWN)
def test_nothing_of_our_own_names_another_host(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert re.findall(r"https?://[^\s\"'`]+", text) in ([], ["http://www.w3.org/2000/svg"])


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_every_field_has_a_label_and_the_page_a_language_and_one_main_part(
    client: AsgiDriver, path: str
) -> None:
    text = (await client.request("GET", path)).body.decode()
    assert '<html lang="en">' in text
    assert text.count("<main") == 1
    outside = re.sub(r"<label.*?</label>", "", text, flags=re.DOTALL)
    assert not re.search(r"<(input|select|textarea)\b", outside)


@pytest.mark.parametrize("name", SHIPPED)
async def test_a_shipped_file_is_served_as_what_it_is(client: AsgiDriver, name: str) -> None:
    pages = {"index.html": "", "docs.html": "docs"}
    path = name if name.startswith("admin/") else pages.get(name, f"static/{name}")
    answer = await client.request("GET", f"/{path}")
    assert (answer.status, answer.body) == (200, (FOLDER / name).read_bytes())
    assert answer.headers["content-type"].partition(";")[0] in TYPES[Path(name).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_what_is_taken_from_others_comes_with_its_license() -> None:
    assert {
        "swagger-ui/LICENSE",
        "swagger-ui/NOTICE",
        "swagger-ui/swagger-ui-bundle.js.LICENSE.txt",
        "admin/vendor/uPlot.LICENSE.txt",
    } <= set(SHIPPED)


@pytest.mark.parametrize(
    "path",
    [
        "/static",
        "/static/",
        "/static/nothing.js",
        "/static/swagger-ui",
        "/static/swagger-ui/",
        "/static/../pages.py",
        "/static/../../__init__.py",
        "/static//etc/passwd",
        "/static/%2e%2e/pages.py",
        "/static/..\\pages.py",
        "/static/index.js\0",
        "/static/admin/index.html",
        "/static/./admin/index.html",
        "/static/../static/admin/index.html",
        "/static/index.html",
        "/static/docs.html",
        "/admin/nothing.js",
        "/admin/vendor",
        "/admin/vendor/",
        "/admin/../index.html",
        "/admin/%2e%2e/index.html",
        "/admin//etc/passwd",
        "/static/" + "a" * 300,
    ],
)
async def test_no_other_file_is_served(client: AsgiDriver, path: str) -> None:
    answer = await client.request("GET", path)
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_file_is_only_read(client: AsgiDriver) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert (await client.request(method, "/static/index.js")).status == 405


async def test_a_file_that_has_not_changed_is_not_sent_again(client: AsgiDriver) -> None:
    first = await client.request("GET", "/static/index.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await client.request(
        "GET", "/static/index.js", headers={"if-none-match": first.headers["etag"]}
    )
    assert (again.status, again.body) == (304, b"")


async def test_every_file_of_the_operators_page_has_its_policy(client: AsgiDriver) -> None:
    for path in ("", "index.html", "main.js", "vendor/uPlot.min.css"):
        answer = await client.request("GET", f"/admin/{path}")
        assert answer.headers["content-security-policy"] == ADMIN_POLICY
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-cache"
        again = await client.request(
            "GET", f"/admin/{path}", headers={"if-none-match": answer.headers["etag"]}
        )
        assert (again.status, again.body) == (304, b"")


async def test_without_its_slash_the_operators_page_is_found_all_the_same(
    client: AsgiDriver,
) -> None:
    answer = await client.request("GET", "/admin")
    assert (answer.status, answer.headers["location"]) == (308, "admin/")


async def test_the_operators_page_is_found_under_a_prefix_that_a_proxy_leaves_in_the_path() -> None:
    async with lifespan(app := create_app(Settings(root_path="/push"))):
        client = AsgiDriver(app)
        for prefix in ("", "/push"):
            page = await client.request("GET", f"{prefix}/admin/")
            assert page.status == 200
            for source in re.findall(r'(?:src|href)="([^"]+)"', page.body.decode()):
                target = urljoin(f"{prefix}/admin/", source)
                assert (await client.request("GET", target)).status == 200


@pytest.mark.parametrize("name", [name for name in OWN if name.startswith("admin/")])
def test_the_operators_page_makes_no_html_of_texts(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function"
        r"|srcdoc|javascript:",
        text,
    )
