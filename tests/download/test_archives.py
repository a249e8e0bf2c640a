"""Files out of archives: the right one, nothing else, nowhere else."""

import gzip
import io
import shutil
import tarfile
import zipfile
from types import SimpleNamespace

import gdown
import gdown.exceptions
import pytest
import requests

from tests.download.conftest import finished

NAMES = ("norman", "dixit", "replogle", "adamson")


def tar(path, members, mode="w:gz"):
    """A tar of name -> bytes, or name -> (kind, link name)."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def four(cells, tmp_path):
    members = {"datasets/README": b"hello", **{f"datasets/{name}/{name}_qc.h5ad": cells for name in NAMES}}
    members |= {"datasets/norman/norman_raw.h5ad": b"raw", "datasets/norman/._norman_qc.h5ad": b"what macOS leaves"}
    return tar(tmp_path / "datasets.tar.gz", members)


@pytest.fixture
def cradle(tmp_path):
    return tmp_path / "data" / "cradle"


def drive(monkeypatch, act):
    """Put ``act(output)`` in the place of gdown's download; returns the calls."""
    calls = []

    def fake(*, output, progress, **more):
        calls.append((more["id"], more))
        return act(output, progress)

    monkeypatch.setattr(gdown, "download", fake)
    return calls


def test_one_archive_from_drive_serves_four(sctool, monkeypatch, four, cells, cradle):
    def act(output, progress):
        with open(output, "wb") as file:
            file.write(four.read_bytes())
        progress(four.stat().st_size, four.stat().st_size)

    calls = drive(monkeypatch, act)
    ran = sctool("download", "cradle")
    assert ran.code == 0, ran.err
    assert [(file_id, more["resume"]) for file_id, more in calls] == [("1OIi1Z3fiw8yKbzarLXMlxy5tJRm1w8Rx", True)]
    assert finished(cradle) == sorted(f"{name}.h5ad" for name in NAMES)
    assert all((cradle / f"{name}.h5ad").read_bytes() == cells for name in NAMES)
    assert not list(cradle.glob("*.part*"))
    assert sctool("download", "cradle").code == 0
    assert len(calls) == 1


def test_one_archive_from_a_mirror_serves_four(sctool, server, four, cells, cradle):
    route = server.add("/m/cradle/datasets.tar.gz", four.read_bytes(), answers=[("cut", 300_000)])
    ran = sctool("download", "cradle", "--mirror", f"{server.base}/m", "--only", "dixit", "--only", "norman")
    assert ran.code == 0, ran.err
    assert [status for _, status in route.requests] == [200, 206]
    assert sorted(path.name for path in cradle.iterdir()) == ["checksums.json", "dixit.h5ad", "norman.h5ad"]
    assert (cradle / "norman.h5ad").read_bytes() == cells


def test_one_bad_member_of_four(sctool, server, monkeypatch, tmp_path, cells, cradle):
    packed = tar(tmp_path / "x.tar.gz", {"a/norman_qc.h5ad": cells, "a/dixit_qc.h5ad": b"no", "a/replogle_qc.h5ad": cells})
    server.add("/m/cradle/datasets.tar.gz", packed.read_bytes())
    monkeypatch.setattr(gdown, "download", refuse("nothing here"))
    three = ("--only", "norman", "--only", "dixit", "--only", "replogle")
    ran = sctool("download", "cradle", "--mirror", f"{server.base}/m", *three)
    assert ran.code == 3
    assert finished(cradle) == ["norman.h5ad", "replogle.h5ad"]
    assert "is not the data set dixit" in ran.err
    assert ran.out.count("1,500 cells") == 2


def test_no_room_to_unpack_keeps_the_archive(sctool, server, monkeypatch, four, cells, cradle):
    monkeypatch.setattr(gdown, "download", refuse("not asked for here"))
    route = server.add("/m/cradle/datasets.tar.gz", four.read_bytes())
    words = ("download", "cradle", "--only", "norman", "--mirror", f"{server.base}/m")
    room = [10**9, 1000]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=room.pop(0)))
    ran = sctool(*words)
    assert ran.code == 2
    assert "1 kB free; 481 kB are needed" in ran.err
    assert [path.name for path in cradle.iterdir() if path.suffix == ".part"] == ["datasets.tar.gz.part"]
    room.append(10**9)
    assert sctool(*words).code == 0
    assert len(route.requests) == 1
    assert sorted(path.name for path in cradle.iterdir()) == ["checksums.json", "norman.h5ad"]


def refuse(message):
    def fake(**_):
        raise gdown.exceptions.FileURLRetrievalError(message)

    return fake


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Too many users have viewed or downloaded this file recently.", "too many people fetched it"),
        ("Cannot retrieve the public link of the file. You may need to change the permission ...", "no longer shared"),
    ],
)
def test_refusals_of_drive(sctool, monkeypatch, cradle, message, said):
    monkeypatch.setattr(gdown, "download", refuse(message))
    ran = sctool("download", "cradle", "--only", "norman")
    assert ran.code == 2
    assert said in ran.err
    assert "wait 24 hours, or open https://drive.google.com/uc?id=1OIi1Z3fiw8yKbzarLXMlxy5tJRm1w8Rx in a browser" in ran.err
    assert "--from-file" in ran.err
    assert finished(cradle) == []


@pytest.mark.parametrize(
    ("trouble", "tries", "said"),
    [
        (gdown.exceptions.DownloadError("Download is incomplete: received 5 bytes"), 5, "incomplete"),
        (requests.exceptions.ConnectionError("reset"), 5, "Google Drive: no connection"),
        (requests.exceptions.HTTPError(response=type("R", (), {"status_code": 503})), 5, "answered 503"),
        (requests.exceptions.HTTPError(response=type("R", (), {"status_code": 404})), 1, "answered 404"),
        (OSError(28, "No space left on device"), 1, "the disk is full"),
    ],
)
def test_troubles_of_drive(sctool, monkeypatch, cradle, trouble, tries, said):
    def act(output, progress):
        raise trouble

    calls = drive(monkeypatch, act)
    ran = sctool("download", "cradle", "--only", "norman")
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert len(calls) == tries
    assert finished(cradle) == []


def test_the_real_gdown_goes_on_with_its_part(monkeypatch, server, four, tmp_path):
    """gdown itself, with our server for Google's: cut, then resumed by the next call."""
    from sctool.data.download import drive as ours
    from sctool.data.download import part

    real = gdown.download
    monkeypatch.setattr(gdown, "download", lambda **more: real(url=f"{server.base}/{more.pop('id')}", **more))
    body = four.read_bytes()
    server.add("/id", body, answers=[("cut", len(body) // 2)] + [("cut", 0)] * 30)
    target, words = tmp_path / "a.tar.gz.part", {"say": print, "report": lambda *_: None}
    with pytest.raises(part.Unavailable):
        ours.fetch_drive("id", target, **words)
    assert not target.exists()
    route = server.add("/id", body)
    ours.fetch_drive("id", target, **words)
    assert target.read_bytes() == body
    assert route.requests[-1][1] == 206
    assert part.is_complete(target, ours.drive_url("id"))


def packings(folder, cells):
    yield tar(folder / "a.tar.gz", {"d/train_pbmc.h5ad": cells})
    yield tar(folder / "b.tar", {"train_pbmc.h5ad": cells, "train_hpoly.h5ad": b"x"}, "w")
    yield tar(folder / "c.tar.xz", {"pbmc.h5ad": cells, "old/pbmc_old.h5ad": b"x"}, "w:xz")
    yield zipped(folder / "d.zip", {"d/train_pbmc.h5ad": cells, "__MACOSX/._train_pbmc.h5ad": b"x"})
    plain = folder / "e.h5ad"
    plain.write_bytes(cells)
    yield plain
    named_wrongly = folder / "f.h5ad"
    named_wrongly.write_bytes((folder / "d.zip").read_bytes())
    yield named_wrongly


def test_from_file(pbmc, folder, cells, tmp_path):
    for given in packings(tmp_path, cells):
        before = given.read_bytes()
        ran = pbmc("--from-file", given, "--force")
        assert ran.code == 0, ran.err
        assert (folder / "pbmc.h5ad").read_bytes() == cells
        assert given.read_bytes() == before
        assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "pbmc.h5ad"]
        (folder / "pbmc.h5ad").unlink()


def test_from_file_of_four(sctool, four, cradle):
    assert sctool("download", "cradle", "--from-file", four).code == 0
    assert finished(cradle) == sorted(f"{name}.h5ad" for name in NAMES)
    assert four.exists()


def test_an_archive_behind_url(pbmc, server, folder, cells, tmp_path):
    server.add("/x", zipped(tmp_path / "x.zip", {"train_pbmc.h5ad": cells}).read_bytes())
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "pbmc.h5ad"]
    assert (folder / "pbmc.h5ad").read_bytes() == cells


MALICIOUS = {
    "up": ({"../pbmc.h5ad": b"x"}, "points out of the archive"),
    "absolute": ({"/tmp/pbmc.h5ad": b"x"}, "points out of the archive"),
    "symlink": ({"pbmc.h5ad": (tarfile.SYMTYPE, "/etc/passwd")}, "is a link or a device"),
    "hard link": ({"pbmc.h5ad": (tarfile.LNKTYPE, "other")}, "is a link or a device"),
    "device": ({"pbmc.h5ad": (tarfile.CHRTYPE, "")}, "is a link or a device"),
    "fifo": ({"pbmc.h5ad": (tarfile.FIFOTYPE, "")}, "is a link or a device"),
    "folder": ({"pbmc.h5ad": (tarfile.DIRTYPE, "")}, "is a link or a device"),
    "absent": ({"dixit.h5ad": b"x", "README": b"y"}, "has no .h5ad for pbmc: dixit.h5ad, README"),
    "several": ({"a/pbmc_1.h5ad": b"x", "b/pbmc_2.h5ad": b"y"}, "has several files for pbmc: a/pbmc_1.h5ad, b/pbmc_2.h5ad"),
    "bomb": ({"pbmc.h5ad": bytes(30_000_000)}, "it is no honest archive"),
    "empty": ({}, "has no .h5ad for pbmc: nothing"),
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_malicious_and_useless_tars(pbmc, folder, tmp_path, kind):
    members, said = MALICIOUS[kind]
    outside = set(tmp_path.parent.iterdir())
    ran = pbmc("--from-file", tar(tmp_path / "x.tar.gz", members))
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert list(folder.iterdir()) == []
    assert set(tmp_path.parent.iterdir()) == outside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "x.tar.gz"]


def test_malicious_zips(pbmc, folder, tmp_path, cells):
    link = zipfile.ZipInfo("pbmc.h5ad")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "is a link or a device" in pbmc("--from-file", tmp_path / "link.zip").err
    assert "points out of the archive" in pbmc("--from-file", zipped(tmp_path / "up.zip", {"..\\pbmc.h5ad": cells})).err
    assert "no honest archive" in pbmc("--from-file", zipped(tmp_path / "bomb.zip", {"pbmc.h5ad": bytes(30_000_000)})).err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("harm", ["cut", "one byte", "gzip of no tar", "glued"])
def test_damaged_archives(pbmc, folder, tmp_path, cells, harm):
    good = bytearray(tar(tmp_path / "x.tar.gz", {"pbmc.h5ad": cells, "z": b"z" * 100_000}).read_bytes())
    if harm == "one byte":
        good[len(good) // 3] ^= 0xFF
    bad = {"cut": good[: len(good) // 2], "gzip of no tar": gzip.compress(cells), "glued": good[:200_000] + good[200_500:]}
    (tmp_path / "x.tar.gz").write_bytes(bad.get(harm, good))
    ran = pbmc("--from-file", tmp_path / "x.tar.gz")
    assert ran.code == 2, ran.out
    assert "Traceback" not in ran.err
    assert "x.tar.gz" in ran.err
    assert list(folder.iterdir()) == []
