"""The Dockerfile, built by buildah on a Debian root that mmdebstrap makes, and the compose and Kubernetes
files. The image runs as its user on a read-only root."""

import json
import os
import shlex
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml
from conftest import BUNDLE, pip_configuration, running
from live_server import ROOT, free_port
from pydicom.data import get_testdata_file

from streamsrv import config
from streamsrv.settings import Settings
from streamsrv.web.access.policy import check_issuer

CONF = ROOT / "conf"
LARGEST = 250_000_000


class Builder:
    """buildah without a registry and without a daemon, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "containers.conf").write_text("[containers]\ndefault_ulimits = []\n")
        self.environment = os.environ | {
            "BUILDAH_ISOLATION": "chroot",
            "CONTAINERS_CONF": str(folder / "containers.conf"),
        }

    def __call__(self, *arguments):
        command = ["buildah", "--root", self.folder / "root", "--runroot", self.folder / "run", *arguments]
        found = subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout.strip()

    def base(self, archive):
        """Makes an image of a Debian root."""
        place = self.folder / "base.tar"
        os.link(archive, place)
        recipe = self.folder / "Dockerfile"
        recipe.write_text("FROM scratch\nADD base.tar /\n")
        self("build", "--quiet", "--tag", "localhost/base", "--file", recipe, self.folder)
        place.unlink()

    def volumes(self):
        """The certificates and the index of pip of this machine."""
        configuration = self.folder / "pip.conf"
        configuration.write_text(pip_configuration("/opt/certificates.crt"))
        yield from ("--volume", f"{BUNDLE}:/opt/certificates.crt:ro")
        yield from ("--volume", f"{configuration}:/etc/pip.conf:ro")


@pytest.fixture(scope="module")
def image(debian, tmp_path_factory):
    """The builder, the root folder of a container, and the size of the image in bytes."""
    build = Builder(tmp_path_factory.mktemp("images"))
    build.base(debian)
    limits = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=10000:10000")
    recipe = ("--file", ROOT / "Dockerfile", "--build-arg", "BASE=localhost/base")
    build("build", "--tag", "localhost/streamsrv", *limits, *recipe, *build.volumes(), ROOT)
    container = build("from", "--pull-never", "localhost/streamsrv")
    root = Path(build("mount", container))
    yield build, root
    build("rm", container)
    build("rmi", "--all", "--force")
    shutil.rmtree(build.folder, ignore_errors=True)


def test_size_user_and_volume(image):
    build, root = image
    found = subprocess.run(["du", "-sxb", root], capture_output=True, text=True, check=True)
    size = int(found.stdout.split()[0])
    print(f"the image has {size / 1e6:.0f} MB")
    assert size < LARGEST
    config = json.loads(build("inspect", "--type", "image", "localhost/streamsrv"))["OCIv1"]["config"]
    assert (config["User"], list(config["Volumes"])) == ("10001:10001", ["/data"])
    assert not list((root / "opt/streamsrv").rglob("pip/__init__.py"))


def test_it_can_check_tokens_and_the_certificate_of_an_issuer(image):
    script = """
import ssl
import streamsrv.web.access.login
assert ssl.create_default_context().cert_store_stats()["x509_ca"] > 50
"""
    _, root = image
    command = ["chroot", str(root), "/opt/streamsrv/bin/python", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


CODECS = """
import numpy
from framecodecs.frameinfo import FrameInfo
from framecodecs.registry import SYNTAXES, decode, encode
from framecodecs.rendering import pictures

pixels = numpy.arange(64 * 64, dtype="u2").astype("u1")
count = 0
for uid, row in SYNTAXES.items():
    for library in row.encode_libraries:
        coded, info = encode(pixels.tobytes(), uid, FrameInfo(64, 64), library=library)
        for other in row.decode_libraries:
            assert len(decode(coded, uid, info, library=other)[0]) == pixels.size, (uid, library, other)
            count += 1
picture = pixels.reshape(64, 64)
for media_type in pictures.FORMATS:
    assert pictures.picture_file(picture, media_type, icc_profile=pictures.srgb_profile())
    assert pictures.picture_file(picture, media_type)
assert count >= 35
"""


def test_it_has_the_codecs_of_every_syntax(image):
    """Each library that encodes a syntax, with each that decodes it, and all formats of pictures."""
    _, root = image
    command = ["chroot", str(root), "/opt/streamsrv/bin/python", "-c", CODECS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_serves_on_a_read_only_root(image, tmp_path):
    build, root = image
    config = json.loads(build("inspect", "--type", "image", "localhost/streamsrv"))["OCIv1"]["config"]
    port, data = free_port(), tmp_path / "data"
    data.mkdir()
    os.chown(data, 10001, 10001)
    command = shlex.join([*config["Entrypoint"], *config["Cmd"], "--port", str(port)])
    script = f"""
        mount --bind {root} {root} && mount -o remount,ro,bind {root} &&
        mount --bind {data} {root}/data && mount -t proc proc {root}/proc &&
        mount -t tmpfs tmpfs {root}/tmp && mount -t tmpfs tmpfs {root}/dev &&
        mknod -m 666 {root}/dev/null c 1 3 && mknod -m 666 {root}/dev/urandom c 1 9 &&
        exec chroot {root} /usr/bin/setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs \
        --bounding-set=-all env -i {" ".join(config["Env"])} {" ".join(COMPOSED)} {command}
    """
    origin = f"http://127.0.0.1:{port}"

    def answers():
        try:
            return urllib.request.urlopen(f"{origin}/health/ready").status == 200
        except OSError:
            return False

    with running(["unshare", "-m", "sh", "-c", script], answers, tmp_path / "log") as process:
        content = Path(get_testdata_file("CT_small.dcm")).read_bytes()
        headers = {"Content-Type": "application/dicom", "Host": "streamsrv:8943"}
        request = urllib.request.Request(f"{origin}/v2/studies", content, headers)
        assert urllib.request.urlopen(request).status == 200
        with urllib.request.urlopen(f"{origin}/v2/instances") as answer:
            (found,) = json.loads(answer.read())
        rendered = found["00081190"]["Value"][0].replace("http://streamsrv:8943", origin) + "/rendered"
        with urllib.request.urlopen(rendered) as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
        with open(f"/proc/{process.pid}/status") as status:
            assert "Uid:\t10001\t10001" in status.read()
    assert (data / "store.toml").stat().st_uid == 10001


COMPOSED = ["STREAMSRV_ALLOW_REMOTE_WITHOUT_AUTHENTICATION=true", "STREAMSRV_ALLOWED_HOSTS=streamsrv"]


@pytest.mark.parametrize("name", ["compose.yaml", "compose-nginx.yaml", "compose-keycloak.yaml"])
def test_compose_files(name):
    services = yaml.safe_load((CONF / name).read_text())["services"]
    server = services["streamsrv"]
    assert set(server["environment"]) <= set(variables())
    assert (server["read_only"], server["cap_drop"]) == (True, ["ALL"])
    if name == "compose.yaml":
        assert sorted(f"{key}={value}" for key, value in server["environment"].items()) == sorted(COMPOSED)
        assert server["ports"] == ["127.0.0.1:8943:8943"]
    for volume in services.get("nginx", services.get("keycloak", {})).get("volumes", ()):
        source = volume.partition(":")[0]
        assert source == "./certificates" or (CONF / source).exists()


def test_the_realm_fits_the_settings():
    environment = yaml.safe_load((CONF / "compose-keycloak.yaml").read_text())["services"]["streamsrv"][
        "environment"
    ]
    settings = config.load(environment=environment)
    check_issuer(settings)
    realm = json.loads((CONF / "keycloak-realm.json").read_text())
    assert settings.oidc_issuer.endswith(f"/realms/{realm['realm']}")
    roles = {role["name"] for role in realm["roles"]["realm"]}
    assert roles == {entry.partition(" ->")[0] for entry in settings.oidc_roles}
    assert roles == {role for user in realm["users"] for role in user["realmRoles"]}
    for client in realm["clients"]:
        (mapper,) = client["protocolMappers"]
        assert mapper["config"]["included.custom.audience"] == settings.oidc_audience[0]


def test_the_kubernetes_manifest():
    parts = {part["kind"]: part for part in yaml.safe_load_all((CONF / "kubernetes.yaml").read_text())}
    pod = parts["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {one["name"] for one in container["env"]} <= set(variables())
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsUser"] == 10001
    (port,) = parts["Service"]["spec"]["ports"]
    assert port["port"] == container["ports"][0]["containerPort"] == Settings().port


def variables():
    return {f"STREAMSRV_{name.upper()}" for name in Settings.__dataclass_fields__}
