"""Safety at the door and on the way out: the deny list, blur and block, what the log says."""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.auxiliary.choose import choose_safety
from models.bundle import ModelBundle
from pipelines.request import Pixels
from pipelines.safety_check import SafetyCheck
from server.accounts.types import Balance
from server.engine_service import StartError, load_model
from server.img2img.deny_list import DenyList, DenyListError
from server.img2img.moderation import SafetyPolicy, blurred
from server.settings import Settings
from tests.server.conftest import PATH, MakeClient
from tests.server.failures import assert_failure
from tests.server.pictures import file_of
from tests.server.stub_engine import StubEngine
from tests.server.team import Team
from tests.tiny_model import write_tiny_checker

UNSAFE = Image.new("RGB", (320, 320), (250, 20, 20))
SAFE = Image.new("RGB", (320, 320), (20, 40, 250))


@pytest.fixture(scope="module")
def check(tiny: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> SafetyCheck:
    """A checker of random weights with one concept planted: the look of `UNSAFE`."""
    import torch

    folder = write_tiny_checker(tmp_path_factory.mktemp("checker") / "checker")
    model = choose_safety(tiny, str(folder))
    pixels = torch.stack([model._pixels(np.asarray(image)) for image in (UNSAFE, SAFE)])
    with torch.no_grad():
        embedded = model.checker.visual_projection(model.checker.vision_model(pixels)[1])
        cosine = torch.nn.functional.cosine_similarity(embedded[0], embedded[1], dim=0).item()
    assert cosine < 0.999
    model.checker.concept_embeds.data[5] = embedded[0]
    model.checker.concept_embeds_weights.data[5] = (1 + cosine) / 2
    return SafetyCheck(model)


@pytest.fixture
def ask(engine: StubEngine, check: SafetyCheck, make_client: MakeClient) -> Callable[..., Any]:
    """Posts a picture, which the stub engine gives back, to a server with a safety policy."""

    def post(mode: Any, picture: Image.Image, threshold: float = 0.0, **extra: Any) -> Any:
        engine.safety = SafetyPolicy(mode, threshold, check)
        return make_client().post(
            PATH,
            data={"prompt": "a cat", **extra},
            files={"init_image": ("a.png", file_of(picture))},
            headers=extra.pop("headers", None),
        )

    return post


def pixels_of(response: Any) -> Pixels:
    data = base64.b64decode(response.json()["data"]["image"])
    return np.asarray(Image.open(io.BytesIO(data)))


def scores(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [r.fields for r in caplog.records if r.getMessage() == "safety"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["blur", "block"])
def test_a_safe_picture_passes_untouched(
    ask: Callable[..., Any], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        response = ask(mode, SAFE)
    assert list(response.json()["data"]) == ["image", "seed"]
    assert np.array_equal(pixels_of(response), np.asarray(SAFE))
    (fields,) = scores(caplog)
    assert fields["outcome"] == "passed"
    assert fields["score"] < 0


def test_block_answers_code_minus_1_with_the_reason(
    ask: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        response = ask("block", UNSAFE)
    message = assert_failure(response, 400)
    assert "safety check held the picture back" in message
    (fields,) = scores(caplog)
    assert fields["outcome"] == "block"
    assert fields["score"] > 0
    assert fields["request_id"] == response.headers["x-request-id"]


def test_blur_answers_a_blurred_picture_and_says_so(ask: Callable[..., Any]) -> None:
    marked = UNSAFE.copy()
    marked.paste((0, 0, 0), (150, 150, 156, 156))
    response = ask("blur", marked)
    assert response.json()["code"] == 0
    assert list(response.json()["data"]) == ["image", "seed", "filtered"]
    assert response.json()["data"]["filtered"] is True
    got = pixels_of(response)
    assert got.shape == (320, 320, 3)
    assert got[:, :, 0].min() > 200  # the mark cannot be made out
    data = base64.b64decode(response.json()["data"]["image"])
    assert "Filtered: True" in Image.open(io.BytesIO(data)).text["parameters"]  # type: ignore[attr-defined]


def test_a_higher_threshold_lets_the_picture_pass(ask: Callable[..., Any]) -> None:
    assert list(ask("block", UNSAFE, threshold=0.9).json()["data"]) == ["image", "seed"]
    assert_failure(ask("block", SAFE, threshold=-1.0), 400)


@dataclass
class Scorer:
    """A checker whose arithmetic failed, as in half precision on a card."""

    found: float
    obstacle: str | None = None
    alive: bool = True

    def score(self, picture: Pixels) -> float:
        return self.found


@pytest.mark.parametrize("mode", ["blur", "block"])
@pytest.mark.parametrize("score", [math.nan, -math.inf, math.inf])
def test_a_picture_without_a_score_goes_to_nobody_and_costs_nothing(
    make_client: MakeClient,
    engine: StubEngine,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    mode: Any,
    score: float,
) -> None:
    team = Team(database_url)
    engine.safety = SafetyPolicy(mode, 0.0, Scorer(score))
    response = make_client(database_url=team.url).post(
        PATH,
        data={"prompt": "a cat"},
        files={"init_image": ("a.png", file_of(SAFE))},
        headers={"Authorization": team.make_key()},
    )
    assert_failure(response, 500, "internal error")
    assert "x-credits-charged" not in response.headers
    assert team.balance() == Balance(100, 0)
    assert team.states() == {"released": 1}
    said = [r for r in caplog.records if "gave no score" in r.getMessage()]
    assert [r.levelname for r in said] == ["ERROR"]


def test_previews_are_not_made_where_pictures_are_checked(
    ask: Callable[..., Any], engine: StubEngine
) -> None:
    ask("blur", SAFE, previews="true")
    assert not engine.last_request.previews


def test_an_event_stream_ends_with_the_refusal(
    engine: StubEngine, check: SafetyCheck, make_client: MakeClient
) -> None:
    engine.safety = SafetyPolicy("block", 0.0, check)
    response = make_client().post(
        PATH,
        data={"prompt": "a cat"},
        files={"init_image": ("a.png", file_of(UNSAFE))},
        headers={"Accept": "text/event-stream"},
    )
    assert '"code":-1,"message":"the safety check held' in response.text
    assert '"image"' not in response.text


def test_nothing_can_be_made_out_in_a_blurred_picture() -> None:
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (320, 512, 3)).astype(np.uint8)
    got = blurred(picture)
    assert got.shape == picture.shape
    assert got.std() < picture.std() / 20


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a cat", None),
        ("a Forbidden Word here", "forbidden word"),
        ("forbidden\n  word", "forbidden word"),
        ("(forbidden:1.3) word", "forbidden word"),
        ("forb[id]den word", "forbidden word"),
        ("forbiddenword", None),
        ("unforbidden words", None),
        ("ＢＡＤ", "bad"),
        ("badge", None),
        ("x c++ y", "c++"),
    ],
)
def test_the_deny_list_finds_whole_phrases(tmp_path: Path, prompt: str, found: str | None) -> None:
    file = tmp_path / "deny.txt"
    file.write_text("# not taken\nforbidden  word\n\nBad\nc++\n", encoding="utf-8")
    assert DenyList.read(file).find(prompt) == found


def test_a_deny_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "deny.txt"
    file.write_bytes(b"\xef\xbb\xbfforbidden\r\nbad\r\n")
    assert DenyList.read(file).find("so forbidden") == "forbidden"


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("nude2", "nude"),
        ("2nude", "nude"),
        ("a nude_", "nude"),
        ("_nude_", "nude"),
        ("nude\u00b2", "nude"),
        ("nude\u2167", "nude"),
        ("nude's", "nude"),
        ("it'snude", "nude"),
        ("nu\u0301de", None),
        ("nude\u0336", "nude"),
        ("nude\u732b", None),  # letters of any script
        ("nudes", None),
        ("denude", None),
        ("NUDE", "nude"),
        ("n(u:1.1)de", "nude"),
        ("n\\\\ude", None),  # an escaped backslash is a sign to CLIP too
        ("born in 1850", None),
        ("over 18", "18"),
        ("x18y", "18"),
        ("a\u0130b", "a\u0130b".casefold()),
        ("h2o, h\u2082o", "h2o"),
        ("x+18", "+18"),
    ],
)
def test_words_end_where_clips_tokenizer_ends_them(prompt: str, found: str | None) -> None:
    phrases = ["Nude", "h2o", "a\u0130b"]
    phrases.append("+18" if "+" in prompt else "18")
    assert DenyList(phrases).find(prompt) == found


def test_no_list_takes_everything(tmp_path: Path) -> None:
    assert DenyList.read(None).find("anything") is None
    (tmp_path / "empty").write_text("# nothing\n")
    assert DenyList.read(tmp_path / "empty").find("anything") is None
    with pytest.raises(DenyListError, match="cannot be read"):
        DenyList.read(tmp_path / "missing")


def test_a_prompt_on_the_deny_list_is_refused_by_name(
    make_client: MakeClient, tmp_path: Path, picture_file: bytes, engine: StubEngine
) -> None:
    file = tmp_path / "deny.txt"
    file.write_text("gore\n")
    client = make_client(prompt_deny_list=file)

    def post(**fields: str) -> Any:
        return client.post(PATH, data=fields, files={"init_image": ("a.png", picture_file)})

    message = assert_failure(post(prompt="much Gore"), 400)
    assert message == "prompt: 'gore' is not taken by this server"
    assert engine.handles == []
    message = assert_failure(post(prompt="a cat", negative_prompt="no gore_"), 400)
    assert message == "negative_prompt: 'gore' is not taken by this server"
    assert engine.handles == []


@pytest.mark.parametrize("preset", ["FAST_BLUE", "SIMPLE", "SLOWEST"])
def test_guidance_needs_a_clip_model(
    engine: StubEngine, make_client: MakeClient, picture_file: bytes, preset: str
) -> None:
    engine.clip = None
    client = make_client()

    def post(**fields: str) -> Any:
        files = {"init_image": ("a.png", picture_file)}
        return client.post(PATH, data={"prompt": "a cat", **fields}, files=files)

    message = assert_failure(post(clip_guidance_preset=preset), 400)
    assert message.startswith(f"clip_guidance_preset: {preset} needs a CLIP model")
    assert engine.handles == []
    assert post(clip_guidance_preset="NONE").json()["code"] == 0


def test_a_check_without_a_checker_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="'embedded' ships no safety checker"):
        load_model(Settings(safety="block", device="cpu"), warm_up=False)
    folder = write_tiny_checker(tmp_path / "checker")
    settings = Settings(
        safety="blur", safety_checker=str(folder), safety_threshold=0.1, clip_model="none"
    )
    model = load_model(settings, warm_up=False)
    assert model.clip is None
    assert model.safety is not None
    assert (model.safety.mode, model.safety.threshold) == ("blur", 0.1)
    score = model.safety.scorer.score(np.asarray(SAFE))
    assert -2 <= score < 0
