"""A1111's prompt syntax that is not supported: cut out or read as words, and named."""

from __future__ import annotations

import pytest

from server.api.a1111_form import A1111Form
from server.api.a1111_prompts import without_unsupported
from tests.server.apis import Apis, ignored
from tests.server.conftest import MakeClient
from tests.server.stub_engine import StubEngine


@pytest.fixture
def apis(make_client: MakeClient) -> Apis:
    return Apis(make_client())


@pytest.mark.parametrize(
    ("prompt", "left", "named"),
    [
        ("a cat <lora:foo:0.8>", "a cat", ["lora"]),
        ("a <lora:x:1><LORA:y:1>cat <hypernet:z:0.5>", "a cat", ["lora", "hypernet"]),
        ("<lyco:some name:1:0.5> a", "a", ["lyco"]),
        ("[a cat:a dog:0.5]", "[a cat:a dog:0.5]", ["editing"]),
        ("[a:10]", "[a:10]", ["editing"]),
        ("[a (b:1.2)::.5 ] c", "[a (b:1.2)::.5 ] c", ["editing"]),
        ("[red|blue] cat", "[red|blue] cat", ["alternation"]),
        ("([[a|b]:c:3]:1.1)", "([[a|b]:c:3]:1.1)", ["alternation", "editing"]),
        ("a cat AND a dog :1.2", "a cat AND a dog :1.2", ["AND"]),
        *(
            (text, text, [])
            for text in (
                *("a [cat]", "(cat:1.2) [[dog]]", "a | b", "[a (b|c)", "(a|b)", "[a|b"),
                *(r"\[a|b\]", r"[a\|b]", "[a: b]", "[a:b]", "a < b > c", "<a>", "<:x>", "BAND and"),
                *("a BREAK b", "", "]a|b[", "[a:0.5)", "[a) | b"),
            )
        ),
    ],
)
def test_what_is_recognised(prompt: str, left: str, named: list[str]) -> None:
    form, told = without_unsupported(A1111Form(prompt=prompt))
    assert (form.prompt, told) == (left, [f"prompt.{name}" for name in named])
    form, told = without_unsupported(A1111Form(negative_prompt=prompt))
    named = [name for name in named if name != "AND"]
    assert (form.negative_prompt, told) == (left, [f"negative_prompt.{name}" for name in named])


def test_it_is_named_in_the_answer_and_no_network_is_read_as_words(
    apis: Apis, engine: StubEngine
) -> None:
    response = apis.img2img(
        prompt="a [red|blue] cat <lora:foo:0.8>", negative_prompt="<lora:bar:1> dark", eta=1
    )
    assert response.status_code == 200
    assert ignored(response) == {"eta", "prompt.lora", "prompt.alternation", "negative_prompt.lora"}
    assert engine.last_request.prompt == "a [red|blue] cat"
    assert engine.last_request.negative_prompt == "dark"
    assert response.json()["parameters"]["prompt"] == "a [red|blue] cat <lora:foo:0.8>"
