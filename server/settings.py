"""Every setting, in one frozen class that is the only reader of the environment.

Each field is read from `IMG2IMG_` and its name in capitals; what the command line gives wins.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.spec import AccelerationMode, ModelSpec, Quantization
from server.key_marker import file_was_made
from server.rates import parse_rate
from server.setting_values import is_loopback, split_list, split_lora, split_size

ENV_PREFIX = "IMG2IMG_"
MIB = 1024 * 1024
FORM_ALLOWANCE = MIB
"""Bytes a body may have beyond its picture: the other fields and the form's own lines."""

# What no operator means, and what clocks, operating systems and arithmetic still take.
MOST_SECONDS = 30 * 24 * 3600
MOST_HOURS = 100 * 366 * 24
MOST_MIB = 1 << 24
MOST_REQUESTS = 1_000_000

StringList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]
SecretList = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(split_list)]


class Settings(BaseSettings):
    """The settings of a server. Lists are comma separated or JSON."""

    model_config = SettingsConfigDict(
        allow_inf_nan=False,
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        # A value may be a key: an error message must not repeat it.
        hide_input_in_errors=True,
        # `model` is the field's own word for the weights.
        protected_namespaces=(),
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")

    api_keys: SecretList = Field(
        (),
        description="Keys that clients may use, without credits, beside those of the database. "
        "Without any, requests are open, which is only allowed on a loopback address.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="Where keys and credits are kept: `sqlite:///PATH` or "
        "`postgresql://USER:PASSWORD@HOST/NAME`. Blank: `accounts.db` in the data folder, used "
        "once `img2img keys create` has made it.",
    )
    data_dir: Path = Field(
        Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "img2img-server",
        description="Folder for what the server keeps, unless it is told another place.",
    )
    credits: bool = Field(
        True, description="Charge credits to the keys of the database; `off` for keys alone."
    )
    answers_mib: float = Field(
        512.0,
        ge=0,
        le=MOST_MIB,
        description="MiB of answers kept for their Idempotency-Key, at most; the oldest go first.",
    )
    answers_hours: float = Field(
        24.0,
        gt=0,
        le=MOST_HOURS,
        description="Hours that an answer is kept for its Idempotency-Key.",
    )
    rate: str = Field(
        "",
        description="Rate of a key that has none of its own, such as `30/minute`; blank: any.",
    )
    concurrency: int = Field(
        0,
        ge=0,
        le=MOST_REQUESTS,
        description="Requests that a key without a number of its own may run at the same time; "
        "0: any.",
    )
    limits_url: SecretStr = Field(
        SecretStr("memory://"),
        description="Where rates are counted: `memory://`, or `redis://HOST:6379` for several "
        "servers.",
    )
    auth_failures: str = Field(
        "30/minute",
        description="Rate of wrong keys from one address, and ten times that from its network "
        "(/24, /64), beyond which it is answered 429; blank: any.",
    )
    no_auth: bool = Field(
        False, description="Ask for no key, whatever the address and whatever keys are set."
    )

    model: str = Field(
        "embedded",
        min_length=1,
        description="Weights: `embedded`, a folder in diffusers' layout, a `.safetensors` "
        "checkpoint, or a hub id.",
    )
    model_revision: str | None = Field(
        None, description="Revision (commit or tag) of a hub model; pins what is downloaded."
    )
    prediction: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto",
        description="What the U-Net predicts, `epsilon` or `v_prediction`; auto believes the "
        "folder or the file's metadata, else epsilon.",
    )
    ema: bool = Field(
        False, description="Take the averaged (EMA) U-Net of a checkpoint that carries both."
    )
    vae: str | None = Field(
        None,
        description="Another VAE, a folder or a `.safetensors` file: AutoencoderKL, or "
        "AutoencoderTiny for speed.",
    )
    loras: StringList = Field(
        (),
        description="LoRA files that are fused into the model, each with its weight behind a "
        "colon: `a.safetensors:0.8` (1 if left out).",
    )
    embeddings: str | None = Field(
        None, description="Folder of textual inversions; a file's name is its word in a prompt."
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` and so on.")
    dtype: str = Field(
        "auto", description="`auto`, `float32`, `float16` or `bfloat16`; auto takes the fastest."
    )
    quantize: Quantization = Field(
        "off",
        description="Number format of the U-Net's linear layers: `off`, `int8`, or `fp8` (CUDA of "
        "compute capability 8.9 or higher, with `IMG2IMG_DTYPE=bfloat16`). Pictures change a "
        "little. Needs the extra `quantize`.",
    )
    clip_model: str = Field(
        "auto",
        min_length=1,
        description="CLIP model for `clip_guidance_preset`: `auto`, `none`, a folder or a hub id. "
        "`auto` is the model's own if it ships one, else `openai/clip-vit-large-patch14`: "
        "downloaded for a hub model, only if cached already for a local one.",
    )
    acceleration: AccelerationMode = Field(
        AccelerationMode.GRAPHS,
        description="`off`, `graphs` (CUDA graphs, forwards of our own), `compile` (CUDA graphs, "
        "the modules compiled for the hot sizes), or `max` (and kernels tried out, which takes "
        "minutes). What the device cannot do is left out.",
    )
    hot_sizes: StringList = Field(
        ("512x512",),
        description="Sizes that are made ready at start, WIDTHxHEIGHT each; others are captured "
        "once they are used often.",
    )
    auto_sizes: bool = Field(
        False,
        description="Give a request that names neither width nor height the hot size whose shape "
        "is nearest to its picture's.",
    )
    compile_cache: Path | None = Field(
        None,
        description="Folder for compiled code, read at start and written after the first one; "
        "blank: `compiled` in the data folder.",
    )
    threads: int = Field(
        0, ge=0, le=4096, description="CPU threads a tensor operation uses; 0: torch's."
    )
    memory_limit_mib: int = Field(
        0,
        ge=0,
        le=MOST_MIB,
        description="MiB that the model and its work are planned for, weights included; 0: what "
        "is free on a CUDA device, any on a CPU.",
    )
    vae_tile_above: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Megapixels above which pictures are encoded and decoded in tiles; 0: where "
        "a whole one would not fit into the memory.",
    )

    max_queue: int = Field(
        64,
        ge=1,
        le=MOST_REQUESTS,
        description="Requests that may wait or run; one more is answered 503, Retry-After.",
    )
    max_batch: int = Field(
        16, ge=1, le=1024, description="Requests that run at the same time, at most."
    )
    exact: bool = Field(
        False,
        description="Make a request's bytes the same alone, in a crowd and after a restart, at the "
        "price of some throughput.",
    )
    request_timeout: float = Field(
        300.0,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds a request may take from its arrival, its upload included; then it is "
        "answered 504. One that would take longer alone is answered 400.",
    )
    grace_period: float = Field(
        30.0,
        ge=0,
        le=MOST_SECONDS,
        description="Seconds that running requests get to finish after SIGTERM.",
    )
    max_upload_mib: float = Field(
        20.0,
        gt=0,
        le=MOST_MIB,
        description="Largest picture file taken, in MiB; a larger one is answered 413.",
    )
    min_upload_rate: float = Field(
        4.0,
        ge=0,
        le=1e9,
        description="KiB/s that an upload has to bring on average; a slower one is answered 408. "
        "0: any.",
    )
    upload_patience: float = Field(
        15.0,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds that an upload may be behind that rate, or stand still.",
    )
    answer_patience: float = Field(
        30.0,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds in which a client has to take some of its answer; then it is cut off.",
    )
    max_bytes_in_flight_mib: float = Field(
        512.0,
        gt=0,
        le=MOST_MIB,
        description="MiB of uploads and unread answers held at the same time, at least one "
        "upload; what would go beyond is answered 503, Retry-After.",
    )
    max_header_kib: int = Field(
        64,
        ge=1,
        le=MOST_MIB,
        description="KiB that a request's line and headers may have; more is answered 431.",
    )
    header_timeout: float = Field(
        15.0,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds in which a request's headers have to come; then 408.",
    )
    picture_threads: int = Field(
        4,
        ge=1,
        le=64,
        description="Processes that decode uploads, and threads that encode answers.",
    )
    picture_cpu_seconds: float = Field(
        2.0,
        gt=0,
        le=MOST_SECONDS,
        description="CPU seconds that the decoding of one upload may take, and 0.1 more for each "
        "million pixels beyond 16; then it is answered 400.",
    )
    picture_memory_mib: int = Field(
        600,
        ge=16,
        le=MOST_MIB,
        description="MiB that the decoding of one upload may take above an idle decoder's, and "
        "11.4 more for each million pixels beyond 16; then it is answered 400.",
    )

    safety: Literal["off", "blur", "block"] = Field(
        "off",
        description="What happens to pictures that the safety checker finds unsafe: `off` (no "
        "check), `blur`, or `block` (answered with code -1).",
    )
    safety_checker: str = Field(
        "auto",
        min_length=1,
        description="Safety checker: `auto` (the one that the model ships), a folder or a hub id.",
    )
    safety_threshold: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="Score above which a picture is unsafe; higher lets more pass. Every score is "
        "in the log.",
    )
    prompt_deny_list: Path | None = Field(
        None,
        description="File of words and phrases, one a line, that neither prompt may hold.",
    )

    max_breaks: int = Field(
        16,
        ge=0,
        le=1_000_000,
        description="Times that BREAK may stand in a prompt or a negative prompt; more is "
        "answered 400.",
    )

    cors_origins: StringList = Field(
        (), description="Origins whose pages may call this server from a browser; `*` for any."
    )
    root_path: str = Field(
        "", description="Path prefix a reverse proxy serves this server under, such as `/images`."
    )
    forwarded_allow_ips: StringList = Field(
        (),
        description="Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto "
        "are believed.",
    )
    errors_as_200: bool = Field(
        False,
        description="Answer failures with HTTP 200, for clients that only read `code`; the true "
        "status is then in X-Status. Health checks keep theirs.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="`text` (key=value) or `json`, one line an event, on standard error."
    )

    @field_validator("api_keys")
    @classmethod
    def _no_empty_key(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(not key.get_secret_value().strip() for key in keys):
            raise ValueError("holds an empty key")
        return tuple(SecretStr(key.get_secret_value().strip()) for key in keys)

    @field_validator("loras")
    @classmethod
    def _lora_weights(cls, loras: tuple[str, ...]) -> tuple[str, ...]:
        for text in loras:
            split_lora(text)
        return loras

    @field_validator("hot_sizes")
    @classmethod
    def _sizes_of_the_contract(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for text in sizes:
            split_size(text)
        return sizes

    @field_validator("rate", "auth_failures")
    @classmethod
    def _rate(cls, text: str) -> str:
        if text.strip():
            parse_rate(text)
        return text.strip()

    @field_validator("data_dir")
    @classmethod
    def _home(cls, folder: Path) -> Path:
        try:
            return folder.expanduser()
        except RuntimeError as error:  # A user who does not exist.
            raise ValueError(str(error)) from None

    @field_validator("root_path")
    @classmethod
    def _plain_root_path(cls, path: str) -> str:
        path = path.strip().rstrip("/")
        if path and not path.startswith("/"):
            raise ValueError("does not start with /")
        return path

    @field_validator(
        "log_level", "log_format", "prediction", "quantize", "safety", "acceleration", mode="before"
    )
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @property
    def asks_for_key(self) -> bool:
        """Return whether a request needs a key."""
        return bool(self.api_keys or self.has_database) and not self.no_auth

    @property
    def accounts_file(self) -> Path:
        """The SQLite file of a server that is told no other database."""
        return self.data_dir.expanduser() / "accounts.db"

    @property
    def accounts_url(self) -> str:
        """The database of keys and credits, whether it is there or not."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.accounts_file}"

    @property
    def has_database(self) -> bool:
        """Return whether there is a database of keys: one that was named, or made by `img2img
        keys`."""
        return self.database_url is not None or file_was_made(self.data_dir, self.accounts_file)

    @property
    def hot_picture_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each hot size, in pixels."""
        return tuple(split_size(text) for text in self.hot_sizes)

    @property
    def auto_picture_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of the sizes to choose from for a request that names none; none: any."""
        return self.hot_picture_sizes if self.auto_sizes else ()

    @property
    def compile_folder(self) -> Path:
        """The folder of compiled code."""
        return (self.compile_cache or self.data_dir / "compiled").expanduser()

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mib * MIB)

    @property
    def max_bytes_in_flight(self) -> int:
        """Bytes of requests and answers that may be held; the largest request always has room."""
        return max(int(self.max_bytes_in_flight_mib * MIB), self.max_body_bytes)

    @property
    def max_body_bytes(self) -> int:
        """Bytes of the largest request's body: its picture and the form around it."""
        return self.max_upload_bytes + FORM_ALLOWANCE

    @property
    def model_spec(self) -> ModelSpec:
        """The weights that these settings name."""
        return ModelSpec(
            model=self.model,
            revision=self.model_revision,
            prediction=self.prediction,
            ema=self.ema,
            vae=self.vae,
            loras=tuple(split_lora(text) for text in self.loras),
            embeddings=self.embeddings,
            quantize=self.quantize,
        )

    def exposure_problem(self) -> str | None:
        """The reason why these settings would open the server to strangers, or None."""
        if self.asks_for_key or self.no_auth or is_loopback(self.host):
            return None
        return (
            f"Refusing to listen on {self.host} without API keys: anyone who reaches this address "
            f"could use the server. Make a key with `img2img keys create NAME`, set "
            f"{ENV_PREFIX}API_KEYS, listen on 127.0.0.1, or give "
            f"--no-auth ({ENV_PREFIX}NO_AUTH=true) if something in front checks who calls."
        )


def environment_name(field: str) -> str:
    """The environment variable a setting is read from."""
    return ENV_PREFIX + field.upper()


def unknown_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """A line for each `IMG2IMG_` variable that is no setting, with the nearest name."""
    names = os.environ if environment is None else environment
    known = {environment_name(field) for field in Settings.model_fields}
    return [_name_typo(name, known) for name in sorted(names) if _is_unknown(name, known)]


def _is_unknown(name: str, known: Iterable[str]) -> bool:
    return name.upper().startswith(ENV_PREFIX) and name.upper() not in known


def _name_typo(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.upper(), list(known), n=1)
    return f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else "")
