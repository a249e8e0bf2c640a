"""A server with faults, real cells to serve, and a command that doesn't wait long."""

import pytest

from sctool.data.demo import CELLS
from sctool.data.download import fetch
from tests.download.server import Server


@pytest.fixture(scope="session")
def one_server():
    server = Server()
    yield server
    server.shutdown()


@pytest.fixture
def server(one_server, monkeypatch):
    one_server.routes.clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return one_server


@pytest.fixture(scope="session")
def cells():
    """Bytes of a real .h5ad, half a megabyte."""
    return CELLS.path.with_name("treated.h5ad").read_bytes()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(fetch, "TIMEOUT", (2.0, 0.5))


@pytest.fixture
def pbmc(sctool):
    """``sctool download scgen --only pbmc`` with more words."""
    return lambda *words: sctool("download", "scgen", "--only", "pbmc", *words)


@pytest.fixture
def folder(tmp_path):
    """Where the group lands."""
    return tmp_path / "data" / "scgen"


def finished(folder):
    """Names in a folder but for what is marked unfinished or is a record; none of these may look like data after a failure."""
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if ".part" not in path.name and path.name != "checksums.json")
