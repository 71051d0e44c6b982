from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.engine_service import LoadedModel
from server.errors import ConfigurationError
from server.images.workers.pool import DecoderPool
from server.settings import Settings
from tests.server.conftest import PATH, MakeClient
from tests.server.databases import sqlite_url
from tests.server.failures import assert_failure
from tests.server.stub_engine import StubEngine

# Failures of the framework


@pytest.mark.parametrize("path", ["/nothing", "/api/generate/basic/imagetoimage", PATH + "/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_paths(client: TestClient, method: str, path: str) -> None:
    assert_failure(client.request(method, path), 404, f"nothing is at {path}")


@pytest.mark.parametrize("path", ["/static/nothing.js", "/static/../settings.py", "/redoc"])
def test_unknown_files(client: TestClient, path: str) -> None:
    assert_failure(client.get(path), 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_wrong_method(client: TestClient, method: str) -> None:
    response = client.request(method, PATH)
    assert_failure(response, 405, f"{method} is not allowed", "allowed: POST")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/openapi.json", "/client.js", "/static/page/index.html"),
        *("/health/live", "/health/ready", "/-/healthz", "/api/account", "/api/account/usage"),
        *("/v1/models", "/v1/engines/list", "/v1/user/balance"),
        *("/sdapi/v1/options", "/sdapi/v1/samplers", "/queue/status", "/internal/ping"),
        *(PATH, "/nothing", "/v1/nothing"),
    ],
)
def test_head_is_answered_as_get_without_the_body(client: TestClient, path: str) -> None:
    asked, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (asked.status_code, b"")
    assert asked.content
    for name in ("allow", "cache-control", "content-type", "content-length"):
        assert head.headers.get(name) == asked.headers.get(name), name


def test_files_cannot_be_posted_to(client: TestClient) -> None:
    assert_failure(client.post("/static/swagger/swagger-ui.css"), 405)


def test_an_error_in_the_application_is_a_500_that_tells_nothing(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    application: Any = client.app

    @application.get("/broken")
    def broken() -> None:
        raise RuntimeError("the secret inside")

    response = client.get("/broken", headers={"X-Request-Id": "id-7"})
    assert assert_failure(response, 500) == "internal error, request id id-7"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info
    assert "the secret inside" in str(record.exc_info[1])


# Request ids


def test_every_answer_has_a_request_id(client: TestClient) -> None:
    ids = {client.get(path).headers["x-request-id"] for path in ("/health/live", "/x", "/docs")}
    assert len(ids) == 3


@pytest.mark.parametrize(("offered", "taken"), [("abc.D-1_2", True), ("a b", False), ("é", False)])
def test_a_sane_request_id_is_taken(client: TestClient, offered: str, taken: bool) -> None:
    answer = client.get("/health/live", headers={"X-Request-Id": offered.encode()})
    assert (answer.headers["x-request-id"] == offered) is taken
    too_long = client.get("/health/live", headers={"X-Request-Id": "a" * 65})
    assert too_long.headers["x-request-id"] != "a" * 65


# CORS

ORIGIN = "https://page.example"


def preflight(client: TestClient, origin: str, method: str = "POST") -> Any:
    asked = "authentication, authorization, x-request-id"
    return client.options(
        PATH,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": asked,
        },
    )


def test_cors_is_off_by_default(client: TestClient) -> None:
    assert_failure(preflight(client, ORIGIN), 405)
    answer = client.get("/health/live", headers={"Origin": ORIGIN})
    assert "access-control-allow-origin" not in answer.headers


def test_cors_for_named_origins(make_client: MakeClient) -> None:
    client = make_client(cors_origins=(ORIGIN,))
    allowed = preflight(client, ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    refused = preflight(client, "https://other.example")
    assert_failure(refused, 400, "Disallowed CORS origin")
    assert "access-control-allow-origin" not in refused.headers
    assert_failure(preflight(client, ORIGIN, "PUT"), 400, "Disallowed CORS method")


def test_cors_headers_are_on_failures_too(make_client: MakeClient, engine: StubEngine) -> None:
    client = make_client(cors_origins=(ORIGIN,))
    engine.ready = False
    for path, status in ((PATH, 503), ("/nothing", 404)):
        response = client.post(path, headers={"Origin": ORIGIN})
        assert_failure(response, status)
        assert response.headers["access-control-allow-origin"] == ORIGIN
        exposed = response.headers["access-control-expose-headers"]
        assert "Retry-After" in exposed
        assert "X-Ignored-Fields" in exposed


ANY_HEADER = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "traceparent, x-anything, content-type, idempotency-key",
    "Access-Control-Request-Private-Network": "true",
}


@pytest.mark.parametrize("origins", [ORIGIN, "*"])
def test_a_preflight_with_any_header_from_a_public_page(
    make_client: MakeClient, origins: str
) -> None:
    client = make_client(cors_origins=origins)
    allowed = client.options(PATH, headers={"Origin": ORIGIN, **ANY_HEADER})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] in (ORIGIN, "*")
    assert "x-anything" in allowed.headers["access-control-allow-headers"]
    assert allowed.headers["access-control-allow-private-network"] == "true"


def test_a_preflight_of_another_origin_is_allowed_nothing(make_client: MakeClient) -> None:
    client = make_client(cors_origins=ORIGIN)
    refused = client.options(PATH, headers={"Origin": "https://other.example", **ANY_HEADER})
    assert_failure(refused, 400, "Disallowed CORS origin")
    assert not [name for name in refused.headers if name.startswith("access-control-")]


def test_cors_for_everyone(make_client: MakeClient) -> None:
    assert preflight(make_client(cors_origins="*"), ORIGIN).status_code == 200


# Behind a proxy


@pytest.mark.parametrize("prefix", ["", "/images"])
def test_root_path_whether_the_proxy_strips_it_or_not(make_client: MakeClient, prefix: str) -> None:
    client = make_client(root_path="/images")
    assert client.get(f"{prefix}/health/live").status_code == 200
    assert client.get(f"{prefix}/static/swagger/swagger-ui.css").status_code == 200
    assert '<base href="/images/">' in client.get(f"{prefix}/").text
    docs = client.get(f"{prefix}/docs").text
    assert "/images/static/swagger/swagger-ui-bundle.js" in docs
    assert "/images/openapi.json" in docs
    assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/images"}]
    assert_failure(client.get(f"{prefix}{PATH}"), 405)
    assert_failure(client.get(f"{prefix}/imagesX/health/live"), 404)


OWN_PATHS = ["/api/account", "/api/account/usage", "/health/live", "/docs", "/openapi.json"]


@pytest.mark.parametrize("stripped", [True, False])
@pytest.mark.parametrize("root_path", ["/api", "/sd", "/api/generate", "/a/b", "/docs", "/static"])
def test_a_root_path_that_looks_like_the_contract(
    make_client: MakeClient, root_path: str, stripped: bool, picture_file: bytes
) -> None:
    client = make_client(root_path=root_path)
    prefix = "" if stripped else root_path
    for path in OWN_PATHS:
        assert client.get(prefix + path).status_code == 200, path
    assert f"{root_path}/openapi.json" in client.get(f"{prefix}/docs").text
    assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": root_path}]
    assert client.get(f"{prefix}/static/swagger/swagger-ui.css").status_code == 200
    form: Any = {"data": {"prompt": "a"}, "files": {"init_image": ("a", picture_file)}}
    assert client.post(prefix + PATH, **form).json()["code"] == 0
    assert_failure(client.get(prefix + PATH), 405)
    assert_failure(client.get(f"{prefix}/nothing"), 404)


@pytest.mark.parametrize("root_path", ["", "/api", "/sd"])
@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize(
    "path", [PATH + "/", PATH + "//", "/" + PATH, PATH.replace("/", "//"), PATH + "/?a=b"]
)
def test_slashes_do_not_matter(
    make_client: MakeClient, root_path: str, prefixed: bool, path: str, picture_file: bytes
) -> None:
    client = make_client(root_path=root_path)
    target = "http://testserver" + (root_path if prefixed else "") + path
    form: Any = {"data": {"prompt": "a"}, "files": {"init_image": ("a", picture_file)}}
    answer = client.post(target, **form)
    assert (answer.status_code, answer.json()["code"]) == (200, 0)


@pytest.mark.parametrize(
    "path",
    [
        "/health/live/",
        "//health//live",
        "/docs/",
        "/api//account/",
        "//static/swagger//swagger-ui.css",
    ],
)
def test_slashes_do_not_matter_anywhere(client: TestClient, path: str) -> None:
    assert client.get("http://testserver" + path).status_code == 200


def test_no_root_path_by_default(client: TestClient) -> None:
    assert "servers" not in client.get("/openapi.json").json()
    assert "<base" not in client.get("/").text
    assert_failure(client.get("/images/health/live"), 404)


# Failures with HTTP 200


def test_errors_as_200(make_client: MakeClient, engine: StubEngine) -> None:
    client = make_client(errors_as_200=True, api_keys="key")
    key = {"Authorization": "key"}
    for response, status in (
        (client.get("/nothing"), "404"),
        (client.get(PATH), "405"),
        (client.post(PATH), "401"),
        (client.post(PATH, headers=key), "415"),
    ):
        assert_failure(response, 200)
        assert response.headers["x-status"] == status
    engine.ready = False
    busy = client.post(PATH, headers=key)
    assert_failure(busy, 200)
    assert (busy.headers["x-status"], busy.headers["retry-after"]) == ("503", "5")
    assert_failure(client.get("/health/ready"), 503)


def test_health_checks_keep_their_status_under_a_root_path(
    make_client: MakeClient, engine: StubEngine
) -> None:
    client = make_client(errors_as_200=True, root_path="/images")
    engine.ready = False
    for prefix in ("", "/images"):
        assert_failure(client.get(f"{prefix}/health/ready"), 503)
        assert_failure(client.get(f"{prefix}/nothing"), 200)


def test_errors_have_their_status_by_default(client: TestClient) -> None:
    assert "x-status" not in client.get("/nothing").headers


# Health


def test_health(client: TestClient, engine: StubEngine) -> None:
    assert client.get("/health/live").json() == {
        "code": 0,
        "message": "success",
        "data": {"status": "alive"},
    }
    ready = client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["data"] == {
        "status": "ready",
        "model": "stub",
        "device": "cpu",
        "dtype": "float32",
    }
    engine.ready = engine.alive = False
    assert_failure(client.get("/health/live"), 503, "the engine has stopped")
    assert_failure(client.get("/health/ready"), 503, "the engine has stopped")


def test_ray_is_told_in_its_own_words(make_client: MakeClient, engine: StubEngine) -> None:
    """KubeRay looks for this one word in the answer of every worker pod."""
    client = make_client(errors_as_200=True)
    answer = client.get("/-/healthz")
    assert (answer.status_code, answer.text) == (200, "success")
    engine.ready = False
    answer = client.get("/-/healthz")
    assert (answer.status_code, answer.text) == (503, "the engine has stopped")


def test_live_but_not_ready_while_the_model_loads() -> None:
    import threading

    loaded, engine = threading.Event(), StubEngine()

    def slow_start(settings: Settings) -> LoadedModel:
        loaded.wait(10)
        return engine.starter()(settings)

    with TestClient(create_app(Settings(), starter=slow_start)) as client:
        assert client.get("/health/live").status_code == 200
        assert_failure(client.get("/health/ready"), 503, "the model is loading")
        assert_failure(client.post(PATH), 503, "the model is loading")
        loaded.set()


def test_a_model_that_cannot_be_loaded(caplog: pytest.LogCaptureFixture) -> None:
    import threading

    failed = threading.Event()

    def broken_start(_: Settings) -> LoadedModel:
        raise RuntimeError("no such weights")

    app = create_app(Settings(), starter=broken_start, on_start_failure=failed.set)
    with TestClient(app) as client:
        assert failed.wait(10)
        assert_failure(client.get("/health/live"), 503, "could not be loaded")
        assert_failure(client.get("/health/ready"), 503)
        assert_failure(client.post(PATH), 503)
    assert str(app.state.engine_host.failure) == "no such weights"
    assert "no such weights" in caplog.text


def test_the_end_of_the_lifespan_drains(engine: StubEngine, make_client: MakeClient) -> None:
    client = make_client(grace_period=3.0)
    application: Any = client.app
    assert not engine.drained_with
    asyncio.run(application.state.engine_host.drain(3.0))
    asyncio.run(application.state.engine_host.drain(3.0))
    assert engine.drained_with == [3.0]
    assert application.state.engine_host.model is not None, "what it did is still counted"
    assert_failure(client.get("/health/ready"), 503, "shutting down")
    assert_failure(client.post(PATH), 503, "shutting down")
    assert client.get("/health/live").status_code == 200


def test_what_was_started_is_ended_if_the_rest_does_not_start(
    engine: StubEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("server.accounts.service.Accounts.start", broken)
    app = create_app(Settings(database_url=sqlite_url(tmp_path)), starter=engine.starter())
    with pytest.raises(ZeroDivisionError), TestClient(app):
        raise AssertionError
    assert app.state.decoders._closed


def test_decoders_of_others_are_used_and_left_to_them(
    make_client: MakeClient, decoders: DecoderPool, engine: StubEngine
) -> None:
    app = create_app(Settings(), starter=engine.starter(), decoders=decoders)
    with TestClient(app):
        assert app.state.decoders is decoders
    assert not decoders._closed


def test_an_open_address_without_keys_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Refusing to listen on 0\.0\.0\.0"):
        create_app(Settings(host="0.0.0.0"))


# The API's description


def test_every_parameter_is_refused_in_the_contracts_words(client: TestClient) -> None:
    """Not in those of the framework, which tell no value: `odd` is no number and no id."""
    found = set()
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                name, place = parameter["name"], parameter["in"]
                if place == "header":
                    continue
                sent = {name: "odd"} if place == "query" else {}
                answer = client.request(method, path.replace(f"{{{name}}}", "odd"), params=sent)
                said = assert_failure(answer, 400)
                assert said.startswith(f"{name}: odd is not "), said
                found.add(name)
    assert found == {"days", "run_id"}


def test_openapi_describes_the_form_and_the_answers(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    operation = description["paths"][PATH]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert form["init_image"]["format"] == "binary"
    assert len(form["style_preset"]["enum"]) == 17
    assert len(form["sampler"]["enum"]) == 10
    assert len(form["clip_guidance_preset"]["enum"]) == 7
    assert form["image_strength"] | {"description": ""} == {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.35,
        "description": "",
    }
    failures = ["400", "401", "402", "408", "409", "413", "415", "429", "500", "503", "504"]
    assert set(operation["responses"]) == {"200", *failures}
    headers = [parameter["name"] for parameter in operation["parameters"]]
    assert headers == ["Idempotency-Key", "X-Run-Id"]
    for status, answer in operation["responses"].items():
        if status != "200":
            example = answer["content"]["application/json"]["example"]
            assert list(example) == ["code", "message", "data"]
            assert (example["code"], example["data"]) == (-1, None)
    schemes = description["components"]["securitySchemes"]
    assert {scheme["name"] for scheme in schemes.values()} == {"Authentication", "Authorization"}
    assert operation["security"] == [{"Authentication": []}, {"Authorization": []}]
    assert "$ref" not in json.dumps(operation["requestBody"])


# Headers that keep browsers safe


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/openapi.json", "/health/live", "/static/docs.js", "/nothing", "/broken"],
)
def test_every_answer_tells_browsers_to_be_careful(make_client: MakeClient, path: str) -> None:
    client = make_client(cors_origins=(ORIGIN,))
    application: Any = client.app

    @application.get("/broken")
    def broken() -> None:
        raise RuntimeError

    for response in (
        client.get(path),
        client.head(path),
        client.post(path),
        preflight(client, "x"),
    ):
        headers = response.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers.get_list("content-security-policy")
        assert len(policy) == 1
        assert "frame-ancestors 'none'" in policy[0]
        assert "default-src 'none'" in policy[0]
        assert "unsafe" not in policy[0]


def test_the_page_holds_no_script_or_style_of_its_own(client: TestClient) -> None:
    response = client.get("/docs")
    assert "script-src 'self'; style-src 'self';" in response.headers["content-security-policy"]
    assert "<style" not in response.text
    assert response.text.count("<script") == response.text.count("></script>") == 2
    script = client.get("/static/docs.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "persistAuthorization: false" in script.text


def test_a_prefix_cannot_break_out_of_the_page(make_client: MakeClient) -> None:
    page = make_client(root_path='/a"><script>').get("/docs").text
    assert "<script>" not in page


def test_docs_ask_nothing_of_another_host(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "LICENSE"):
        assert client.get(f"/static/swagger/{name}").status_code == 200


def test_the_description_says_that_the_embedded_model_is_a_demo(tmp_path: Path) -> None:
    def described(model: str) -> str:
        settings = Settings(model=model, data_dir=tmp_path)
        return str(create_app(settings).openapi()["info"]["description"])

    assert "this is a demo model: it knows 14 things (circle, " in described("embedded")
    assert "demo" not in described("someone/else")
