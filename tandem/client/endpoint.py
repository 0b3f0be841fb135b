"""Where the service is, and the key to it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tandem.errors import ConfigurationError
from tandem.home import DEFAULT_HOME, Home


@dataclass(frozen=True, slots=True)
class Endpoint:
    url: str
    """Scheme, host and port, without `/v1`."""
    api_key: str

    @classmethod
    def find(cls, base_url: str | None = None, api_key: str | None = None) -> Self:
        """What is given; else TANDEM_URL and TANDEM_API_KEY; else the `tandem up` that runs in TANDEM_HOME.

        The key of a running service is never sent to another address. Raises ConfigurationError if there is no
        address or no key to be found.
        """
        url = base_url or os.environ.get("TANDEM_URL") or None
        key = api_key or os.environ.get("TANDEM_API_KEY") or None
        if url is None or key is None:
            running = Home(Path(os.environ.get("TANDEM_HOME") or DEFAULT_HOME)).running()
            if url is None and running is None:
                raise ConfigurationError(
                    "no service runs here: start one with `tandem up` in this folder, or name one in TANDEM_URL "
                    "(and its key in TANDEM_API_KEY)",
                    param="TANDEM_URL",
                )
            if running is not None and (url is None or _root(url) == _root(running.api_url)):
                url, key = url or running.api_url, key or running.api_key
        if key is None:
            raise ConfigurationError(
                f"no API key for {url}: set TANDEM_API_KEY to the one that `tandem up` printed",
                param="TANDEM_API_KEY",
            )
        if url is None or not url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"{url!r} is no address; give one such as http://127.0.0.1:8000", param="base_url"
            )
        return cls(_root(url), key)


def _root(url: str) -> str:
    """The address without the `/v1` that the OpenAI SDK wants at its end."""
    return url.rstrip("/").removesuffix("/v1")
