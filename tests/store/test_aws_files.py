"""Credentials of a bucket, from files and variables as the AWS tools take them."""

import pytest
from seaweed import BUCKET, NODE

from streamsrv.errors import StoreError
from streamsrv.store.objects.aws_files import configured
from streamsrv.store.objects.bucket import opened

CREDENTIALS = """
[default]
aws_access_key_id = one
aws_secret_access_key = of one
[archive]
aws_access_key_id = two
aws_secret_access_key = of two
aws_session_token = token
"""
CONFIG = """
[default]
region = eu-west-1
[profile archive]
region = eu-central-1
endpoint_url = https://s3.example
"""


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(CREDENTIALS)
    (folder / "config").write_text(CONFIG)
    return tmp_path


def test_the_default_profile(home):
    assert configured({"HOME": str(home)}) == {
        "access_key_id": "one",
        "secret_access_key": "of one",
        "region": "eu-west-1",
    }


def test_a_named_profile(home):
    assert configured({"HOME": str(home), "AWS_PROFILE": "archive"}) == {
        "access_key_id": "two",
        "secret_access_key": "of two",
        "session_token": "token",
        "region": "eu-central-1",
        "endpoint": "https://s3.example",
    }
    with pytest.raises(StoreError, match="no profile 'other', which AWS_PROFILE names"):
        configured({"HOME": str(home), "AWS_PROFILE": "other"})


def test_variables_come_first(home):
    variables = {"AWS_ACCESS_KEY_ID": "x", "AWS_REGION": "y", "AWS_ENDPOINT_URL": "http://z"}
    assert configured({"HOME": str(home), **variables}) == {"endpoint": "http://z"}
    named = {"AWS_ENDPOINT_URL_S3": "http://s3", "AWS_ENDPOINT_URL": "http://z"}
    assert configured({"HOME": str(home), **named})["endpoint"] == "http://s3"


def test_files_in_other_places(home, tmp_path):
    other = tmp_path / "other"
    other.write_text("[default]\naws_access_key_id = three\naws_secret_access_key = of three\n")
    variables = {"HOME": str(home), "AWS_SHARED_CREDENTIALS_FILE": str(other)}
    assert configured(variables)["access_key_id"] == "three"
    other.write_text("no section\n")
    with pytest.raises(StoreError, match="other cannot be read"):
        configured(variables)
    assert configured({"HOME": str(tmp_path / "nobody")}) == {}


def test_a_bucket_is_opened_by_a_profile(object_store, tmp_path, monkeypatch):
    key, secret = NODE
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        f"[node]\naws_access_key_id={key}\naws_secret_access_key={secret}\n"
        f"region=eu-central-1\nendpoint_url={object_store.endpoint}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "node")
    bucket = opened(f"s3://{BUCKET}/by-profile")
    bucket.put("one", b"content")
    assert bucket.content("one") == b"content"
