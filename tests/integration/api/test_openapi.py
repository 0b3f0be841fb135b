"""The OpenAPI document: every route described, every body with an example, and every example one that is valid."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

Json = dict[str, Any]

JSON = "application/json"
PAGE = Path(__file__).parents[3] / "docs" / "openai.md"
ROUTE = re.compile(r"^\| `((?:GET|POST|DELETE) /[^`]+)` \|", re.MULTILINE)
METHODS = {"get", "post", "delete", "put", "patch"}


@pytest.fixture
def document(api_url: str) -> Json:
    found: Json = httpx.get(f"{api_url}/openapi.json").json()
    return found


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, methods in document["paths"].items():
        assert methods.keys() <= METHODS
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def bodies(document: Json) -> Iterator[tuple[str, Json]]:
    """Every JSON body of a request or an answer, by where it stands."""
    for name, operation in operations(document):
        for place, body in (("request", operation.get("requestBody", {})), *operation["responses"].items()):
            if JSON in body.get("content", {}):
                yield f"{name} {place}", body["content"][JSON]


def examples(media: Json) -> list[Any]:
    return [media["example"]] if "example" in media else [one["value"] for one in media.get("examples", {}).values()]


def test_every_route_says_what_it_is_for(document: Json) -> None:
    bare = [name for name, found in operations(document) if not (found.get("summary") and found.get("description"))]
    assert bare == []
    names = [found["operationId"] for _, found in operations(document)]
    assert len(set(names)) == len(names)


def test_the_docs_list_exactly_the_routes_that_there_are(document: Json) -> None:
    listed = ROUTE.findall(PAGE.read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(name for name, _ in operations(document))


def test_every_body_has_an_example_that_its_schema_allows(document: Json) -> None:
    faults = []
    for place, media in bodies(document):
        found = examples(media)
        if not found:
            faults.append(f"{place}: no example")
        schema = {**media.get("schema", {}), "components": document["components"]}
        validator = jsonschema_rs.validator_for(schema)
        faults += [f"{place}: {error}" for example in found for error in validator.iter_errors(example)]
    assert faults == []


def test_every_protected_route_documents_its_errors(document: Json) -> None:
    for name, operation in operations(document):
        if "security" in operation:
            assert {"401", "503"} <= operation["responses"].keys(), name
    files = document["paths"]["/v1/files"]["post"]["responses"]
    assert {"400", "409", "413"} <= files.keys()
    assert "429" in document["paths"]["/v1/jobs"]["post"]["responses"]
    error = files["409"]["content"][JSON]["example"]["error"]
    assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
