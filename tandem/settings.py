"""Settings, read once at an entry point from TANDEM_* variables and passed down frozen."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tandem.errors import ConfigurationError

Role = Literal["inference", "finetune"]
ROLES: tuple[Role, ...] = ("inference", "finetune")


class Settings(BaseSettings):
    """What every process of the service needs."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_", frozen=True, extra="ignore")

    redis_url: str = "redis://127.0.0.1:6379/0"
    artifacts_url: str = Field(default_factory=lambda: f"file://{Path.home()}/.local/share/tandem/artifacts")
    """Any fsspec URL: `file:///…` by default, `s3://bucket/prefix` with s3fs installed."""
    models_dir: Path = Field(default_factory=lambda: Path.home() / ".cache" / "tandem" / "models")
    """Where the catalogue's relative folders lie."""
    catalogue: Path | None = None
    """A catalogue file; the one inside the package by default."""

    lease_seconds: float = Field(default=15.0, gt=0.0)
    """How long a worker may be silent before its attempts are taken back."""
    result_seconds: float = Field(default=7 * 86_400.0, gt=0.0)
    """How long an ended job with its result and events is kept."""
    idempotency_seconds: float = Field(default=86_400.0, gt=0.0)
    """How long an Idempotency-Key is remembered."""
    dead_letter_seconds: float = Field(default=30 * 86_400.0, gt=0.0)
    """How long a dead letter is kept."""
    crashes_allowed: int = Field(default=3, ge=1, le=100)
    """A job that was lost with its worker so often, alone the last time, has failed: it may be what kills them."""
    ageing_seconds: float = Field(default=60.0, gt=0.0)
    """A job that has waited longer gets a share of the turns, however many more urgent ones there are."""
    queue_limit: int = Field(default=1_000_000, ge=1)
    """Queued jobs in all; further ones are refused until some have ended."""
    ephemeral: bool = False
    """Jobs may be lost when Redis restarts: say so on purpose, and /readyz does not ask for an append-only file."""

    @classmethod
    def read(cls) -> Self:
        """The settings of this process.

        Raises ConfigurationError naming the variable that has a bad value.
        """
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:
                # Two settings that do not fit together: the message names both.
                raise ConfigurationError(first["msg"].removeprefix("Value error, ")) from error
            name = f"TANDEM_{'.'.join(str(part) for part in first['loc']).upper()}"
            raise ConfigurationError(f"{name}: {first['msg']} (it is {first['input']!r})", param=name) from error


class ApiSettings(Settings):
    """What the API needs besides."""

    api_key: SecretStr | None = None
    """The one key of owner `default`; needed unless `api_keys_file` has keys."""
    api_keys_file: Path | None = None
    """Keys with owners of their own, see api_keys.py; `tandem keys` edits it."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    body_bytes: int = Field(default=8 * 2**20, ge=1024)
    """The largest JSON body; files have their own limit."""
    media_bytes: int = Field(default=64 * 2**20, ge=1024)
    """The largest image, sound or video that is sent as a body (under /hf); larger ones are uploaded first."""
    file_bytes: int = Field(default=512 * 2**20, ge=1024)
    """The largest file that is uploaded in one request (OpenAI's limit)."""
    upload_bytes: int = Field(default=8 * 2**30, ge=1024)
    """The largest file that is uploaded in parts (OpenAI's limit)."""
    part_bytes: int = Field(default=64 * 2**20, ge=1024)
    """The largest of these parts (OpenAI's limit, and what its client sends)."""
    wait_seconds: float = Field(default=600.0, gt=0.0)
    """How long a synchronous door (chat completions, embeddings) waits for its job (the SDK's own timeout)."""
    webhook_secret: SecretStr | None = None
    """`whsec_<base64 of 24 to 64 bytes>`, several with commas while one is replaced; without it jobs with a webhook
    are refused."""
    webhook_private: bool = False
    """Webhooks may also go to loopback and private addresses, and over plain http."""
    # NoDecode: the variable is a plain comma-separated list, not JSON.
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Web pages that may call the API from a browser, such as `https://app.example.com`; `*` for all. None by
    default."""
    flower_url: str | None = None
    """Where Flower is, so that the landing page can say so."""

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts if part.strip()) if isinstance(parts, list) else parts

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"{origin!r} is no origin: write scheme and host, such as https://app.example.com")
        return origins

    @field_validator("api_key", "api_keys_file", "webhook_secret", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: object) -> object:
        # What a compose file or a shell makes of a variable that is not set. An empty key would let everyone in.
        return None if isinstance(value, str) and not value.strip() else value

    @model_validator(mode="after")
    def _somebody_can_get_in(self) -> Self:
        if self.api_key is None and self.api_keys_file is None:
            raise ValueError(
                "TANDEM_API_KEY is not set, nor TANDEM_API_KEYS_FILE: nobody could get in; set one of them "
                "(`tandem keys new NAME --file PATH` makes a key)"
            )
        return self


class WorkerSettings(Settings):
    """What a worker needs besides."""

    # NoDecode: the variable is a plain comma-separated list, not JSON.
    roles: Annotated[tuple[Role, ...], NoDecode] = ROLES
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    threads: int = Field(default=64, ge=2, le=1024)
    """Jobs that this worker runs at the same time; each waits on the engine, it does not compute."""
    cpu_threads: int | None = Field(default=None, ge=1)
    """Threads of one torch operation on the CPU; torch's own choice by default."""
    model_bytes: int | None = Field(default=None, ge=1)
    """Memory for resident models with all that they hold: weights, their faster copies, keys and values, adapters. By
    default three quarters of the device's."""
    sequence_slots: int = Field(default=32, ge=1, le=4096)
    """Sequences that one engine runs together."""
    slot_tokens: int = Field(default=2048, ge=16)
    """Tokens of one sequence slot: prompt and answer together."""
    step_tokens: int = Field(default=512, ge=16)
    """Tokens of one engine step: a longer prompt is prefilled in chunks."""
    chunk_tokens: int = Field(default=128, ge=1)
    """Tokens of prompts in a step in which other sequences decode: fewer make their texts come more evenly, more read
    prompts with less work in all."""
    kv_bytes: int | None = Field(default=None, ge=1)
    """Memory for the keys and values of one engine's slots; by default a sixth of the device's. Where it, or what
    `model_bytes` leaves beside the model's weights, does not reach, there are fewer slots, at last shorter ones."""
    kv_reuse: Literal["owner", "shared", "off"] = "owner"
    """Who may go on from the keys and values of a prompt that began the same: jobs of the same owner, all jobs (the
    time to the first token then tells what others have asked), or none."""
    adapter_slots: int = Field(default=16, ge=1, le=1024)
    adapter_rank: int = Field(default=64, ge=1, le=256)
    """The largest LoRA rank that is served."""
    packed_linears: Literal["auto", "off"] = "auto"
    """Copies of linear layers in the order that the CPU multiplies fastest; they take the layers' bytes once more."""
    quantize: Literal["none", "int8"] = "none"
    """8-bit products of large linear layers on the CPU: faster from about a billion parameters on, with answers a
    little off."""
    gpu_kernels: Literal["auto", "plain"] = "plain"
    """`auto`: flash attention over slots and CUDA graphs, where a trial of them succeeds. Not yet run on a GPU, so
    that plain operations are the default."""
    cpu_kernels: Literal["auto", "plain"] = "auto"
    """`auto`: decode steps on a CPU run in compiled operations, where a trial of them succeeds."""
    encoder_tokens: int = Field(default=4096, ge=64)
    """Tokens, padding included, of one encoder batch."""
    encoder_pixels: int = Field(default=3_211_264, ge=1024)
    """Values (pixels · channels) that enter the model in one batch of images: 21 of 224 x 224 by default."""
    encoder_samples: int = Field(default=960_000, ge=1000)
    """Samples of sound in one batch: a minute at 16 kHz."""
    image_pixels: int = Field(default=50_000_000, ge=1)
    """The largest image that is decoded, in pixels."""
    audio_seconds: float = Field(default=3600.0, gt=0.0)
    """The longest sound that is decoded."""
    video_seconds: float = Field(default=600.0, gt=0.0)
    """The longest video that is decoded."""
    encoder_wait_seconds: float = Field(default=0.005, ge=0.0, le=1.0)
    """How long an encoder batch waits for company."""
    serving_slowdown: float = Field(default=1.5, gt=1.0, le=100.0)
    """What training may make of the time between two tokens of a text that is served meanwhile: its 95th percentile,
    as a multiple of what it is without training. See docs/training-while-serving.md."""
    serving_gap_ms: float = Field(default=500.0, gt=0.0)
    """A time between two tokens, in milliseconds, that training does not bring this percentile above either: words
    that come half a second apart are slower than anyone reads."""
    training_share: float = Field(default=0.1, gt=0.0, lt=1.0)
    """What training gets of the device in any case while models serve without pause."""
    training_beside: Literal["auto", "off"] = "auto"
    """On a CPU under Linux, training computes beside serving at a lower priority; `off`: they take turns."""
    trainings: int = Field(default=2, ge=1, le=64)
    """Fine-tuning jobs that this worker runs at the same time, as far as their memory allows; they share what
    training gets."""
    drain_seconds: float = Field(default=20.0, ge=0.0)
    """How long running jobs may still take to end after SIGTERM."""
    stall_seconds: float = Field(default=120.0, gt=0.0, allow_inf_nan=False)
    """A worker whose engine or training makes no step for so long, with work at hand, ends itself."""
    sweep_seconds: float = Field(default=1.0, gt=0.0)
    """How often the reaper looks for expired leases, due jobs and lost tickets."""
    collect_seconds: float = Field(default=3600.0, gt=0.0)
    """How often one of the workers deletes the artifacts that nothing refers to."""

    @model_validator(mode="after")
    def _every_slot_has_a_token(self) -> Self:
        if self.step_tokens < self.sequence_slots:
            raise ValueError(
                f"TANDEM_STEP_TOKENS is {self.step_tokens}, below TANDEM_SEQUENCE_SLOTS, {self.sequence_slots}: "
                "every running sequence needs one token of a step; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _eight_bits_are_packed(self) -> Self:
        if self.quantize == "int8" and self.packed_linears == "off":
            raise ValueError("TANDEM_QUANTIZE=int8 packs the linear layers: it needs TANDEM_PACKED_LINEARS=auto")
        return self

    @field_validator("roles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
