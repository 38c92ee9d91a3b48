"""OpenAPI documents as tools, called over real HTTP on the loopback."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from openapi_documents import call, document, load, port_of, schema_of, written
from recording_server import Server, loopback

from shared.errors import UserError
from step2_tool_calling.http_client import HttpClient
from step2_tool_calling.openapi import load_openapi
from step2_tool_calling.openapi_request import variable_of
from step2_tool_calling.tool import ToolError

PETSTORE = (Path(__file__).parent / "data" / "petstore.yaml").read_text()


@pytest.fixture
def server() -> Iterator[Server]:
    with loopback() as running:
        yield running


@pytest.fixture
def petstore(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Petstore's document in a file, its server the loopback one, its key in the environment."""
    path = tmp_path / "petstore.yaml"
    path.write_text(PETSTORE.replace('default: "80"', f'default: "{port_of(server)}"'))
    monkeypatch.setenv(variable_of("127.0.0.1", "api_key", port_of(server)), "sesame-4711")
    return path


def test_operations_become_tools(petstore: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    tools = load(petstore)
    assert {name: tool.unsafe for name, tool in tools.items()} == {
        "listPets": False,
        "createPets": True,
        "get_pets_petId": False,
        "pets_rename": True,
        "pets_rename_2": True,
        "replaceBasket": True,
    }
    assert {tool.source for tool in tools.values()} == {str(petstore)}
    assert tools["listPets"].description == "List all pets"
    assert tools["createPets"].description == ("Create a pet. Creates a new pet in the store. Duplicates are allowed.")
    remarks = capsys.readouterr().err
    assert "skipped POST /pets/{petId}/photo: its body is multipart/form-data, not JSON" in remarks
    assert "skipped GET /basket: it needs the cookie session" in remarks
    # The key in the header is there, the one in the query is not.
    variable = f"OPENAPI_127_0_0_1___{port_of(server)}___KEY_IN_QUERY_TOKEN"
    assert f"1 operation will fail without a key; set {variable}" in remarks
    assert "API_KEY_TOKEN" not in remarks


def test_schemas(petstore: Path) -> None:
    tools = load(petstore)
    assert tools["listPets"].parameters == {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"type": "string"}, "description": "tags to filter by"},
            "status": {"type": "array", "items": {"type": "string", "enum": ["on", "off", "sold"]}},
            "limit": {
                "type": "integer",
                "maximum": 100,
                "format": "int32",
                "description": "How many items to return at one time (max 100)",
            },
            "X-Request-ID": {"type": "string"},
            "near": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}}},
        },
        "required": [],
        "additionalProperties": False,
    }
    pet = {
        "name": {"type": "string"},
        "tag": {"type": ["string", "null"]},
        "born": {"type": "string", "format": "date", "default": "2020-01-31"},  # a string, not YAML's date
    }
    created = tools["createPets"].parameters
    assert created["required"] == ["name"]  # the server gives the id
    # A pet's parents are pets: written out once, then anything goes.
    assert created["properties"] == pet | {"parents": {"type": "array", "items": {}}}
    renamed = tools["pets_rename"].parameters
    assert renamed["required"] == ["path_petId", "body_petId"]
    assert renamed["properties"] == {
        "path_petId": {"type": "string", "description": "The id of the pet"},  # without the regex Python cannot read
        "body_petId": {"type": "string", "description": "the new id"},
        "weight": {"type": "number", "exclusiveMinimum": 0},
    }
    assert tools["replaceBasket"].parameters["properties"] == {
        "body": {"type": "array", "items": {"type": "string"}, "description": "All pets to buy."}
    }


def test_values_go_where_they_belong(petstore: Path, server: Server) -> None:
    arguments = {
        "tags": ["cat", "a&b"],
        "status": ["on", "off"],
        "limit": 5.0,
        "X-Request-ID": "r1",
        "near": {"lat": 59.5, "lon": 10},
    }
    assert call(petstore, "listPets", **arguments) == {"ok": True}
    call(petstore, "listPets")
    call(petstore, "createPets", name="Tom", tag=None)
    call(petstore, "get_pets_petId", petId="a/b ?ü")
    call(petstore, "pets_rename", path_petId="1", body_petId="2", weight=3)
    call(petstore, "replaceBasket", body=["Tom"])
    first, *others = server.requests
    assert first["path"] == "/v1/pets?tags=cat&tags=a%26b&status=on,off&limit=5&near[lat]=59.5&near[lon]=10"
    assert first["headers"]["x-request-id"] == "r1"
    assert "x-api-key" not in first["headers"]  # this operation asks for none
    assert [(one["method"], one["path"], one["json"]) for one in others] == [
        ("GET", "/v1/pets", None),
        ("POST", "/v1/pets", {"name": "Tom", "tag": None}),
        ("GET", "/v1/pets/a%2Fb%20%3F%C3%BC", None),
        ("PUT", "/v1/pets/1", {"petId": "2", "weight": 3}),
        ("PUT", "/v1/basket", ["Tom"]),
    ]
    assert [one["headers"].get("x-api-key") for one in others] == [None] + ["sesame-4711"] * 4


@pytest.mark.parametrize("value", ["..", ".", ""])
def test_a_value_cannot_climb_the_path(petstore: Path, server: Server, value: str) -> None:
    with pytest.raises(ToolError, match="petId: .* cannot be part of an address"):
        call(petstore, "get_pets_petId", petId=value)
    assert server.requests == []


def test_a_value_cannot_add_a_header(petstore: Path, server: Server) -> None:
    with pytest.raises(ToolError, match="X-Request-ID: only printable ASCII"):
        call(petstore, "listPets", **{"X-Request-ID": "1\r\nX-Admin: yes"})
    assert server.requests == []


def test_answers(petstore: Path, server: Server) -> None:
    server.body = "plain text"
    assert call(petstore, "listPets") == "plain text"
    server.body, server.status = "", 201
    assert call(petstore, "createPets", name="Tom") == {"status": 201}
    server.body, server.status = '{"message": "no such pet"}' + "x" * 5000, 404
    with pytest.raises(ToolError, match="get_pets_petId: HTTP status 404: .*no such pet") as caught:
        call(petstore, "get_pets_petId", petId="9")
    assert len(str(caught.value)) < 400


def test_keys_stay_secret(petstore: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = variable_of("127.0.0.1", "key_in_query", port_of(server))
    with pytest.raises(ToolError, match=f"set {variable} in the environment"):
        call(petstore, "pets_rename_2", petId="1")
    assert server.requests == []

    monkeypatch.setenv(variable, "pass word/1")
    server.body = '{"you sent": "/pets/1?key=pass+word%2F1", "decoded": "pass word/1"}'
    assert "word" not in json.dumps(call(petstore, "pets_rename_2", petId="1"))
    assert server.requests[0]["path"] == "/v1/pets/1?key=pass+word%2F1"

    server.status, server.body = 401, "unknown key sesame-4711"
    with pytest.raises(ToolError, match=r"HTTP status 401: unknown key \[secret\]"):
        call(petstore, "createPets", name="Tom")
    assert "sesame" not in json.dumps([dict(tool.parameters) for tool in load(petstore).values()])


def test_bearer_tokens(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either of two schemes; written as an object where the specification has a list, as some public documents do."""
    described = document(
        servers=[{"url": server.url}],
        security={"oauth": ["read"], "bearer": []},
        components={"securitySchemes": {"oauth": {"type": "oauth2"}, "bearer": {"type": "http", "scheme": "Bearer"}}},
    )
    monkeypatch.setenv(variable_of("127.0.0.1", "bearer", port_of(server)), "sesame-4711")
    call(written(tmp_path, described), "op")
    assert server.requests[0]["headers"]["authorization"] == "Bearer sesame-4711"


def test_variables_belong_to_one_server() -> None:
    assert variable_of("api.x.com", "api-key") == "OPENAPI_API_X_COM___API_KEY_TOKEN"
    assert variable_of("api.x.com", "api-key", 8443) == "OPENAPI_API_X_COM___8443___API_KEY_TOKEN"
    hosts = ["api.x.com", "api-x.com", "api--x.com", "a-pi.x.com", "api.x.com.app", "x.com"]
    schemes, ports = ("key", "app_key", "com_app_key", "8443___key"), (None, 8443, 80)
    names = {variable_of(host, scheme, port) for host in hosts for scheme in schemes for port in ports}
    assert len(names) == len(hosts) * len(schemes) * len(ports)


@pytest.mark.parametrize(
    ("fields", "remark"),
    [
        ({"path": ".evil.org/x"}, "its path does not begin with /"),
        ({"servers": [{"url": "http://trusted.org@evil.org"}]}, "is not a plain http address"),
        ({"servers": [{"url": "http://evil.org\\@trusted.org"}]}, "is not a plain http address"),
        ({"servers": [{"url": "http://gıthub.com"}]}, "is not a plain http address"),  # upper() makes an I of ı
        ({"servers": [{"url": "file:///etc"}]}, "is not a plain http address"),
        ({"servers": [{"url": "/v1"}]}, "needs the document's URL"),
        ({"path": "/x/{id}"}, "its path parameter id is not described"),
        ({"operation": {"parameters": [{"$ref": "other.yaml#/P"}]}}, "leads outside the document"),
        ({"operation": {"parameters": [{"$ref": "#/nowhere"}]}}, "leads nowhere"),
        ({"operation": {"parameters": "none"}}, "malformed"),
        ({"operation": {"parameters": [{"name": "a", "in": "query", "schema": {"type": "int"}}]}}, "is not valid"),
        ({"operation": {"security": [{"basic": []}]}}, "its authentication 'basic' is not supported"),
    ],
)
def test_what_cannot_be_called_is_skipped_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], remark: str
) -> None:
    path = tmp_path / "api.json"
    path.write_text(json.dumps(document(**fields)))
    with pytest.raises(UserError, match="describes no operation that can be called"):
        load(path)
    assert remark in capsys.readouterr().err


def test_references_are_percent_decoded(tmp_path: Path) -> None:
    types = {"schemas": {"My Type/v1": {"type": "integer"}, "list": [{"type": "boolean"}]}}
    for reference, kind in [("My%20Type~1v1", "integer"), ("My Type~1v1", "integer"), ("list/0", "boolean")]:
        schema = {"$ref": f"#/components/schemas/{reference}"}
        assert schema_of(tmp_path, schema, components=types) == {"type": kind}


def test_paths_with_a_query_or_a_fragment(tmp_path: Path, server: Server) -> None:
    parameters = [{"name": "q", "in": "query", "schema": {"type": "string"}}]
    for path in ("/c?x=1", "/c#Action=List"):
        described = document(path=path, servers=[{"url": server.url}], operation={"parameters": parameters})
        call(written(tmp_path, described), "op", q="z")
    assert [one["path"] for one in server.requests] == ["/c?x=1&q=z", "/c?q=z"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"openapi": ', "neither JSON nor YAML"),
        ("a: [1", "neither JSON nor YAML"),
        ("- a list", "not an OpenAPI 3 document"),
        ('{"swagger": "2.0"}', "Swagger 2.0; convert it"),
        ('{"openapi": "3.1.0"}', "describes no paths"),
    ],
)
def test_other_files_end_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "api.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_missing_documents(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none.json")
    server.status = 404
    with pytest.raises(UserError, match="cannot fetch 127.0.0.1/api.json: HTTP status 404") as caught:
        load(server.url + "/api.json?key=hidden")
    assert "hidden" not in str(caught.value)

    async def guarded() -> None:
        async with HttpClient() as client:  # as a session makes it: private addresses are refused
            await load_openapi(server.url + "/api.json", client)

    with pytest.raises(UserError, match="private, loopback and link-local addresses are refused"):
        asyncio.run(guarded())


def test_a_document_that_another_program_wrote(server: Server) -> None:
    """FastAPI's own description of an app: OpenAPI 3.1, references, unions; fetched by URL, its server relative."""
    import enum

    from fastapi import FastAPI, Header, Query
    from pydantic import BaseModel, Field

    class Size(enum.Enum):
        SMALL = "s"
        LARGE = "l"

    class Item(BaseModel):
        name: str = Field(description="what to order")
        size: Size = Size.SMALL
        parts: list["Item"] = []

    app = FastAPI()

    @app.post("/orders/{customer}")
    def order(
        customer: int,
        item: Item,
        gift: bool = False,
        codes: Annotated[list[str] | None, Query()] = None,
        x_trace: Annotated[str | None, Header()] = None,
    ) -> dict[str, Any]:
        """Order one item."""
        return {}

    server.documents["/docs/openapi.json"] = json.dumps(app.openapi())
    url = server.url + "/docs/openapi.json"
    tool = load(url)["order_orders__customer__post"]
    assert tool.description == "Order one item."
    assert tool.parameters["required"] == ["customer", "name"]
    assert tool.parameters["properties"]["size"] == {"type": "string", "enum": ["s", "l"], "default": "s"}
    assert tool.source == "127.0.0.1/docs/openapi.json"
    call(url, tool.name, customer=7, name="tea", size="l", gift=True, codes=["a", "b"])
    assert [(one["method"], one["path"], one["json"]) for one in server.requests] == [
        ("POST", "/orders/7?gift=true&codes=a&codes=b", {"name": "tea", "size": "l"})
    ]
