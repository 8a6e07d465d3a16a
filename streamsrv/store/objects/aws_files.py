"""Credentials, region and endpoint from the files of the AWS tools.

obstore reads the variables itself, and asks the services of a cloud machine. It does not read files.

    ~/.aws/credentials    [PROFILE]          aws_access_key_id, aws_secret_access_key, aws_session_token
    ~/.aws/config         [profile PROFILE]  the same, region, endpoint_url

AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE name other files, AWS_PROFILE another profile than `default`.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from streamsrv.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import S3Config


def configured(environment: Mapping[str, str]) -> S3Config:
    """The settings of the files that no variable replaces. Raises StoreError for a profile that is named and
    not there, or a file that cannot be read."""
    named = environment.get("AWS_PROFILE", "")
    profile = named or "default"
    folder = Path(environment.get("HOME", "~")).expanduser() / ".aws"
    shared = environment.get("AWS_SHARED_CREDENTIALS_FILE") or folder / "credentials"
    config = environment.get("AWS_CONFIG_FILE") or folder / "config"
    section = profile if profile == "default" else f"profile {profile}"
    rows = {**_section(Path(config), section), **_section(Path(shared), profile)}
    if named and not rows:
        raise StoreError(f"the files of the AWS tools have no profile {named!r}, which AWS_PROFILE names")
    found: S3Config = {}
    if "AWS_ACCESS_KEY_ID" not in environment and "aws_access_key_id" in rows:
        found["access_key_id"] = rows["aws_access_key_id"]
        found["secret_access_key"] = rows.get("aws_secret_access_key", "")
        if token := rows.get("aws_session_token"):
            found["session_token"] = token
    if not environment.keys() & {"AWS_REGION", "AWS_DEFAULT_REGION"} and "region" in rows:
        found["region"] = rows["region"]
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if endpoint := endpoint or rows.get("endpoint_url", ""):
        found["endpoint"] = endpoint
    return found


def _section(path: Path, name: str) -> dict[str, str]:
    """Empty if there is no such file or section."""
    parser = configparser.RawConfigParser()
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
    except FileNotFoundError:
        return {}
    except (OSError, configparser.Error, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read: {type(error).__name__}") from None
    return dict(parser.items(name)) if parser.has_section(name) else {}
