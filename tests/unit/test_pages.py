"""The pages and the API's description, in process."""

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from starlette.routing import Mount, Route

from msgpush.adapters.openapi import openapi
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import AsgiDriver


@pytest.fixture
async def client() -> AsyncIterator[AsgiDriver]:
    async with lifespan(app := create_app(Settings())):
        yield AsgiDriver(app)


def document() -> dict[str, Any]:
    described: dict[str, Any] = msgspec.json.decode(openapi("1.2.3"))
    return described


def described_routes() -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in document()["paths"].items() for method in methods}


def test_every_route_is_described_and_every_description_has_its_route() -> None:
    routed = set()
    for route in create_app(Settings()).routes:
        if isinstance(route, Mount):
            routed.add(("GET", f"{route.path}/{{path}}"))
            continue
        assert isinstance(route, Route)
        path = re.sub(r":path\}", "}", route.path)
        methods = route.methods or {"GET", "HEAD"}
        routed |= {(method, path) for method in methods if method != "HEAD" or path.startswith("/sse/")}
    assert described_routes() == routed


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_reference_resolves_and_every_operation_has_a_name_of_its_own() -> None:
    described = document()
    for reference in references(described):
        assert reference.removeprefix("#/components/schemas/") in described["components"]["schemas"]
    names = [operation["operationId"] for path in described["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))


def test_every_parameter_of_a_path_is_described() -> None:
    for path, methods in document()["paths"].items():
        for operation in methods.values():
            named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))


def test_patterns_are_written_as_json_schema_reads_them() -> None:
    text = openapi("1.2.3").decode()
    assert "\\A" not in text
    assert "\\Z" not in text


async def test_answers_are_as_described(client: AsgiDriver) -> None:
    described = document()["paths"]
    for method, path, body in (
        ("GET", "/health", b""),
        ("GET", "/nothing", b""),
        ("POST", "/api/v1/messages/send", b"{}"),
        ("POST", "/api/v1/messages/send", b"{"),
        ("POST", "/api/v1/messages/send", b'{"type":"info","service":"s"}'),
        ("POST", "/api/v1/messages/batch", b"[]"),
        ("GET", "/api/v1/connections", b""),
        ("GET", "/api/v1/connections/stats", b""),
        ("PUT", "/api/v1/connections/stats", b""),
    ):
        answer = await client.request(method, path, body)
        if path in described and method.lower() in described[path]:
            response = described[path][method.lower()]["responses"][str(answer.status)]
            assert answer.headers["content-type"] in response["content"]


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_loads_only_what_is_shipped_with_it(client: AsgiDriver, path: str) -> None:
    page = await client.request("GET", path)
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    text = page.body.decode()
    assert not re.search(r"<script>|<style>| on\w+=", text), "nothing inline"
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert sources
    for source in sources:
        assert not source.startswith(("/", "http")), "relative: right under any prefix"
        assert (await client.request("GET", "/" + source)).status == 200


@pytest.mark.parametrize("path", ["/static/nothing.js", "/static/../pages.py", "/static/%2e%2e/pages.py", "/static/"])
async def test_no_other_file_is_served(client: AsgiDriver, path: str) -> None:
    assert (await client.request("GET", path)).status == 404


async def test_a_file_that_has_not_changed_is_not_sent_again(client: AsgiDriver) -> None:
    first = await client.request("GET", "/static/index.js")
    assert first.headers["x-content-type-options"] == "nosniff"
    again = await client.request("GET", "/static/index.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
