"""What the user set once for every command, and where our own files live."""

import os
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from pgimgsearch.errors import UsageError

ALLOW_PRIVATE = "PGIMGSEARCH_ALLOW_PRIVATE"  # what --allow-private sets, for all processes of a run


@dataclass(frozen=True, slots=True)
class Settings:
    """What every command needs to know: flag > environment > config file > default."""

    db: str | None = None
    home: Path = Path()
    json: bool = False
    quiet: bool = False
    debug: bool = False

    @property
    def embedder_password(self) -> Path:
        """The file that holds the embedder's password, where no other is named."""
        return self.home / "embedder-password"


def default_home() -> Path:
    """The folder of the embedded database.

    As root it lies outside any home: the server runs as another user, and the folders above
    its data have to be opened for that user.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/pgimgsearch")
    return platformdirs.user_data_path("pgimgsearch")


def config_path() -> Path:
    """The config file: PGIMGSEARCH_CONFIG, else the user's config folder."""
    named = os.environ.get("PGIMGSEARCH_CONFIG")
    return Path(named) if named else platformdirs.user_config_path("pgimgsearch") / "config.toml"


def read_config(path: Path) -> dict[str, Any]:
    """Defaults by command, as the command line's parser takes them; none without a file, unless one is named."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        if not os.environ.get("PGIMGSEARCH_CONFIG"):
            return {}
        raise UsageError(f"PGIMGSEARCH_CONFIG names no file: {path}", hint="mend or unset it") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read the config file {path}: {error}", hint=f"fix or remove {path}") from error


def package_folder(name: str) -> Path:
    """``sql`` or ``migrations``: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    packaged = package / name
    return packaged if packaged.is_dir() else package.parent / name


def cache_folder() -> Path:
    """Where downloads and exports of ours are kept: PGIMGSEARCH_CACHE, else the user's cache folder."""
    named = os.environ.get("PGIMGSEARCH_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("pgimgsearch")


def shared_password(path: Path) -> str:
    """The password in a file, which is made, readable by its owner alone, where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        password = path.read_text().strip()
        if not password or not password.isascii():
            raise UsageError(f"{path} holds no password in ASCII", hint="write one, or remove the file") from None
        return password
    with os.fdopen(handle, "w") as file:
        password = secrets.token_urlsafe(24)
        file.write(password + "\n")
    return password
