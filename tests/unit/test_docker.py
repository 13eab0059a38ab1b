"""The Dockerfile and docker-compose.yml as data: no engine runs them here."""

import fnmatch
import re
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture
def compose() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def stages() -> dict[str, str]:
    """Name of a stage -> its instructions, with those of the stages below it."""
    parts = re.split(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    found: dict[str, str] = {}
    for base, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        found[name] = found.get(base, "") + body
    return found


def test_postgres_keeps_its_data_where_its_image_wants_them(compose: Any) -> None:
    db = compose["services"]["db"]
    assert db["image"] == "pgvector/pgvector:pg18"
    assert db["volumes"] == ["pgdata:/var/lib/postgresql"]
    memory = next(word for word in db["command"] if word.startswith("maintenance_work_mem"))
    assert int(re.findall(r"\d+", db["shm_size"])[0]) >= int(re.findall(r"\d+", memory)[0])


def test_services_are_checked_and_private(compose: Any) -> None:
    services = compose["services"]
    assert services["serve"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    for name, service in services.items():
        assert service["healthcheck"]["test"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        passwords = [value for key, value in service["environment"].items() if "PASSWORD" in key]
        assert [value.startswith("${") for value in passwords] == [True], name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith("${"), volume
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"]


def test_the_database_has_the_extensions_that_serve_needs(compose: Any) -> None:
    for extension in ("vector", "dblink"):
        assert f"create extension {extension};" in compose["configs"]["extensions"]["content"]


def test_images_are_built_of_what_is_there(compose: Any) -> None:
    assert {"cpu", "cuda"} <= stages().keys()
    assert compose["services"]["serve"]["build"]["target"] in stages()
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in sent), source
    packaged = re.findall(r'^"(\w+)" = "pgimgsearch', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert {"pgimgsearch", "pyproject.toml", *packaged} <= set(sent)


@pytest.mark.parametrize(("stage", "installs"), [("cpu", " ."), ("cuda", " '.[torch]'")])
def test_an_image_installs_pinned_packages_and_does_not_run_as_root(stage: str, installs: str) -> None:
    body = stages()[stage]
    assert f"pip install --constraint constraints.txt{installs}\n" in body
    assert re.findall(r"^USER (\w+)$", body, re.MULTILINE) == ["pgimgsearch"]
    assert "HEALTHCHECK" in body
