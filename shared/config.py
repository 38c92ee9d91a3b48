"""Every setting of the project, in one object, read from the environment.

    MODEL=smollm2-135m DTYPE=int4     # in the environment of any command

The table of variables in README.md is rendered from the fields below (`make results`), so the two cannot drift apart.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Device = Literal["auto", "cpu", "cuda", "mps"]
DType = Literal["auto", "float32", "bfloat16", "int8", "int4"]


def default_home() -> Path:
    """The user's cache directory for this project (XDG on Linux, the platform's own elsewhere)."""
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "llm-engineer-roadmap"


class Settings(BaseSettings):
    """Settings from environment variables; the variable is the field name in capitals."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    llm_roadmap_home: Path = Field(default_factory=default_home, description="where artifacts and models are kept")
    model: str = Field("smollm2-135m", description="catalog name, model directory, or Hub id with optional @revision")
    adapter: Path | None = Field(None, description="LoRA adapter directory to load on top of the model")
    device: Device = Field("auto", description="auto, cpu, cuda or mps")
    dtype: DType = Field("auto", description="auto, float32, bfloat16, int8 or int4 (weight-only)")
    threads: int | None = Field(None, ge=1, description="CPU threads; unset means one per core this process may use")
    openai_base_url: str | None = Field(None, description="use this OpenAI-compatible endpoint, not the embedded one")
    openai_api_key: SecretStr | None = Field(None, description="key for that endpoint")
    chroma_url: str | None = Field(None, description="Chroma server for step 3's vectors; unset means in this process")
    engine_api_key: SecretStr | None = Field(None, description="key of the engines behind step 5's gateway, if any")
    otel_exporter_otlp_endpoint: str | None = Field(None, description="OTLP collector for step 5's traces")
    hf_endpoint: str | None = Field(None, description="another Hugging Face Hub, e.g. a mirror")
    hf_token: SecretStr | None = Field(None, description="Hub token, for gated models")


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the process's settings, read once. Tests call `settings.cache_clear()` after changing the environment."""
    from pydantic import ValidationError

    from shared.errors import UserError

    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = str(first["loc"][0]).upper() if first["loc"] else "environment"
        raise UserError(f"environment variable {variable}={first.get('input')!r}: {first['msg']}") from None
