"""Every fault of a server, through the real command."""

import errno
import hashlib
import json
import re
import shutil
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from sctool.data.download import downloads, fetch, part, registry
from tests.download.conftest import finished


def error_lines(ran):
    """What the user reads: no traceback, one line of what is wrong, one of what to do."""
    assert "Traceback" not in ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith(("error:", "  fix:"))]
    assert len(lines) == 2
    assert lines[0].startswith("error:")
    assert lines[1].startswith("  fix:")
    return lines


def stated(monkeypatch, **facts):
    """The registry with facts about pbmc that nobody has stated yet, and no address of the real world."""
    entries = tuple(entry.model_copy(update={"sources": (), **facts}) if entry.name == "pbmc" else entry for entry in registry.data_sets())
    monkeypatch.setattr(registry, "data_sets", lambda: entries)


def test_plain(server, pbmc, folder, cells):
    route = server.add("/x", cells)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 0, ran.err
    assert (folder / "pbmc.h5ad").read_bytes() == cells
    assert route.requests == [(None, 200)]
    assert "1,500 cells x 300 genes, X: raw counts" in ran.out
    assert "481 kB" in ran.out
    assert "note: obs lacks cell_type" in ran.out
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "pbmc.h5ad"]
    again = pbmc("--url", f"{server.base}/x")
    assert (again.code, len(route.requests)) == (0, 1)
    assert "already here" in again.out


def test_cut_twice_goes_on_where_it_stopped(server, pbmc, folder, cells):
    route = server.add("/x", cells, answers=[("cut", 200_000), ("cut", 150_000)])
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert (folder / "pbmc.h5ad").read_bytes() == cells
    assert [status for _, status in route.requests] == [200, 206, 206]
    starts = [int(re.search(r"\d+", asked)[0]) for asked, _ in route.requests[1:]]
    assert 0 < starts[0] < starts[1] < len(cells)
    assert route.sent < len(cells) + 2 * fetch.CHUNK


def test_cut_for_ever_keeps_the_part_and_the_next_call_goes_on(server, pbmc, folder, cells):
    route = server.add("/x", cells, answers=[("cut", 200_000)] + [("cut", 0)] * 10)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert "the connection was cut" in error_lines(ran)[0]
    assert len(route.requests) == fetch.TRIES
    assert finished(folder) == []
    kept = (folder / "pbmc.h5ad.part").stat().st_size
    assert kept == 200_000
    route.answers.clear()
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert route.requests[-1] == (f"bytes={kept}-", 206)
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_no_length_and_cut_is_found_out_by_looking_inside(server, pbmc, folder, cells):
    server.add("/x", cells, length=False, answers=[("cut", 200_000)])
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert "is not the data set pbmc" in error_lines(ran)[0]
    assert list(folder.iterdir()) == []


def test_short_bodies_are_noticed_whoever_counts(server, pbmc, folder, cells, monkeypatch):
    """An older urllib3 doesn't compare the length itself."""
    real, cuts = fetch._pieces, [True]

    def pieces(response):
        yield next(iter(real(response)))
        if not (cuts and cuts.pop()):
            yield from real(response)

    monkeypatch.setattr(fetch, "_pieces", pieces)
    route = server.add("/x", cells)
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert [status for _, status in route.requests] == [200, 206]
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_short_writes_are_completed():
    class Full:
        got = b""

        def write(self, data):
            self.got += bytes(data[:3])
            return min(3, len(data))

    file = Full()
    fetch._write(file, b"0123456789")
    assert file.got == b"0123456789"


def test_503_twice(server, pbmc, folder, cells):
    route = server.add("/x", cells, answers=[503, 503])
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert [status for _, status in route.requests] == [503, 503, 200]
    assert (folder / "pbmc.h5ad").read_bytes() == cells


@pytest.mark.parametrize("status", [500, 503, 429])
def test_busy_for_ever(server, pbmc, folder, status):
    route = server.add("/x", always=status)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert f"answered {status}" in error_lines(ran)[0]
    assert "--from-file" in error_lines(ran)[1]
    assert len(route.requests) == fetch.TRIES
    assert finished(folder) == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refused_at_once(server, pbmc, folder, status):
    route = server.add("/x", always=status)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert f"{server.base}/x answered {status}" in error_lines(ran)[0]
    assert len(route.requests) == 1
    assert finished(folder) == []


def test_404_then_the_second_source(server, monkeypatch, pbmc, folder, cells):
    second = registry.Source(kind="http", at=f"{server.base}/second")
    stated(monkeypatch, sources=(registry.Source(kind="http", at=f"{server.base}/first"), second))
    server.add("/second", cells)
    ran = pbmc()
    assert ran.code == 0, ran.err
    assert f"{server.base}/first answered 404" in ran.err
    assert (folder / "pbmc.h5ad").read_bytes() == cells
    assert json.loads((folder / "checksums.json").read_text())["pbmc.h5ad"]["origin"] == f"{server.base}/second"


def test_mirror_is_tried_first(server, monkeypatch, pbmc, folder, cells):
    stated(monkeypatch, sources=(registry.Source(kind="http", at=f"{server.base}/first"),))
    first, mirrored = server.add("/first", cells), server.add("/m/scgen/pbmc.h5ad", cells)
    assert pbmc("--mirror", f"{server.base}/m/").code == 0
    assert (len(mirrored.requests), len(first.requests)) == (1, 0)


def test_retry_after_is_honoured_up_to_a_cap(server, tmp_path, cells):
    waits = []

    def get(retry_after):
        waits.clear()
        server.add("/x", cells, answers=[429], retry_after=retry_after)
        fetch.fetch(f"{server.base}/x", tmp_path / "x.part", say=print, report=lambda *_: None, sleep=waits.append)
        part.discard(tmp_path / "x.part")
        return waits

    assert get("7") == [7.0]
    assert get("99999") == [fetch.LONGEST_WAIT]
    assert get("soon")[0] < 1
    assert 20 < get(formatdate(time.time() + 30, usegmt=True))[0] <= 30


def test_waits_double(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_WAIT", 1.0)
    server.add("/x", always=503)
    waits = []
    with pytest.raises(part.Unavailable):
        fetch.fetch(f"{server.base}/x", tmp_path / "x.part", say=print, report=lambda *_: None, sleep=waits.append)
    assert len(waits) == fetch.TRIES - 1
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits))


def test_nobody_answers(pbmc, server, folder):
    ran = pbmc("--url", "http://127.0.0.1:9/x")
    assert ran.code == 2
    assert "http://127.0.0.1:9/x: no connection" in error_lines(ran)[0]
    assert finished(folder) == []


def test_a_server_that_stalls(server, pbmc, folder, cells, monkeypatch):
    monkeypatch.setattr(fetch, "TRIES", 2)
    server.add("/x", cells, pace=1.5)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert "nothing came" in error_lines(ran)[0]
    assert finished(folder) == []


def test_wrong_checksum(server, pbmc, folder, cells, monkeypatch):
    expected, found = "md5:" + "0" * 32, "md5:" + hashlib.md5(cells).hexdigest()
    stated(monkeypatch, checksum=expected)
    server.add("/x", cells)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert expected in error_lines(ran)[0]
    assert found in error_lines(ran)[0]
    assert list(folder.iterdir()) == []
    stated(monkeypatch, checksum=found)
    assert "checksum as published" in pbmc("--url", f"{server.base}/x").out


def test_wrong_size(server, pbmc, folder, cells, monkeypatch):
    stated(monkeypatch, size=len(cells) + 1)
    route = server.add("/x", cells)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert f"{len(cells):,} bytes where {len(cells) + 1:,}" in error_lines(ran)[0]
    assert finished(folder) == []
    assert route.sent <= len(cells)
    server.add("/x", cells, length=False)
    ran = pbmc("--url", f"{server.base}/x")
    assert f"{len(cells):,} bytes where {len(cells) + 1:,}" in error_lines(ran)[0]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("honest", [True, False], ids=["If-Range kept", "If-Range ignored"])
@pytest.mark.parametrize("dated", [False, True], ids=["ETag", "date"])
def test_a_file_that_changes_between_two_attempts(server, pbmc, folder, cells, honest, dated):
    old = bytes(len(cells))
    mark = {"etag": None, "modified": "Mon, 01 Jan 2024 00:00:00 GMT"} if dated else {"etag": '"old"'}
    server.add("/x", old, answers=[("cut", 200_000)] + [("cut", 0)] * 5, **mark)
    assert pbmc("--url", f"{server.base}/x").code == 2
    assert (folder / "pbmc.h5ad.part").stat().st_size > 0
    mark = {"etag": None, "modified": "Tue, 02 Jan 2024 00:00:00 GMT"} if dated else {"etag": '"new"'}
    route = server.add("/x", cells, if_range=honest, **mark)
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert route.requests[0][0] is not None
    assert [status for _, status in route.requests] == ([200] if honest else [206, 200])
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_without_etag_or_date_nothing_is_glued(server, pbmc, folder, cells):
    server.add("/x", bytes(len(cells)), etag=None, answers=[("cut", 200_000)] + [("cut", 0)] * 5)
    assert pbmc("--url", f"{server.base}/x").code == 2
    route = server.add("/x", cells, etag=None)
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert route.requests == [(None, 200)]
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_a_weak_etag_vouches_for_nothing(server, pbmc, folder, cells):
    server.add("/x", bytes(len(cells)), etag='W/"1"', answers=[("cut", 200_000)] + [("cut", 0)] * 5)
    assert pbmc("--url", f"{server.base}/x").code == 2
    server.add("/x", cells, etag='W/"1"')
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_a_server_without_range_starts_over(server, pbmc, folder, cells):
    route = server.add("/x", cells, ranges=False, answers=[("cut", 200_000)])
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert [status for _, status in route.requests] == [200, 200]
    assert route.requests[1][0] is not None
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_416_of_a_file_that_became_shorter(server, pbmc, folder, cells):
    server.add("/x", bytes(3 * len(cells)), answers=[("cut", 2 * len(cells))] + [("cut", 0)] * 5)
    assert pbmc("--url", f"{server.base}/x").code == 2
    route = server.add("/x", cells, if_range=False)
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert [status for _, status in route.requests] == [416, 200]
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_416_of_a_file_that_is_complete(server, pbmc, folder, cells):
    """Killed after the last byte of a file whose length the server hadn't said."""
    url = f"{server.base}/x"
    route = server.add("/x", cells)
    folder.mkdir(parents=True)
    (folder / "pbmc.h5ad.part").write_bytes(cells)
    part.Origin(url, '"1"', None).write(folder / "pbmc.h5ad.part")
    assert pbmc("--url", url).code == 0
    assert (route.requests, route.sent) == ([(f"bytes={len(cells)}-", 416)], 0)
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_another_address_never_continues_the_part(server, pbmc, folder, cells):
    server.add("/a", bytes(len(cells)), answers=[("cut", 200_000)] + [("cut", 0)] * 5)
    assert pbmc("--url", f"{server.base}/a").code == 2
    route = server.add("/b", cells)
    assert pbmc("--url", f"{server.base}/b").code == 0
    assert route.requests == [(None, 200)]
    assert (folder / "pbmc.h5ad").read_bytes() == cells


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_page_instead_of_data(server, pbmc, folder, kind):
    server.add("/x", b"\n<!DOCTYPE html><html>please log in</html>", kind=kind)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert "a web page, not with data" in error_lines(ran)[0]
    assert finished(folder) == []
    assert not (folder / "pbmc.h5ad.part").exists()


def test_a_page_does_not_cost_what_has_arrived(server, pbmc, folder, cells):
    route = server.add("/x", cells, answers=[("cut", 200_000)] + [("cut", 0)] * 5)
    pbmc("--url", f"{server.base}/x")
    kept = (folder / "pbmc.h5ad.part").stat().st_size
    server.add("/x", b"<html>maintenance</html>", kind="text/html", ranges=False)
    assert pbmc("--url", f"{server.base}/x").code == 2
    assert (folder / "pbmc.h5ad.part").stat().st_size == kept
    server.routes["/x"] = route
    route.answers.clear()
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert route.requests[-1][1] == 206


@pytest.mark.parametrize(("body", "said"), [(b"", "is empty"), (b"hello" * 1000, "is not an .h5ad"), ("half", "cut short or damaged")])
def test_no_h5ad(server, pbmc, folder, cells, body, said):
    server.add("/x", cells[: len(cells) // 2] if body == "half" else body)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert said in error_lines(ran)[0]
    assert list(folder.iterdir()) == []


def test_too_little_room(server, pbmc, folder, cells, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    route = server.add("/x", cells, pace=0.01)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert "1 kB free; 481 kB are needed" in error_lines(ran)[0]
    assert "--dest" in error_lines(ran)[1]
    assert finished(folder) == []
    assert route.sent < len(cells)


def test_the_disk_fills_up(server, pbmc, folder, cells, monkeypatch):
    real, room = fetch._write, [200_000]

    def write(file, piece):
        room[0] -= len(piece)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, piece)

    monkeypatch.setattr(fetch, "_write", write)
    route = server.add("/x", cells)
    ran = pbmc("--url", f"{server.base}/x")
    assert ran.code == 2
    assert "the disk is full" in error_lines(ran)[0]
    assert finished(folder) == []
    kept = (folder / "pbmc.h5ad.part").stat().st_size
    assert kept == 3 * fetch.CHUNK
    room[0] = 10**9
    assert pbmc("--url", f"{server.base}/x").code == 0
    assert route.requests[-1] == (f"bytes={kept}-", 206)
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_zenodo_says_where_how_large_and_which_checksum(server, pbmc, folder, cells, monkeypatch):
    stated(monkeypatch, sources=(registry.Source(kind="zenodo", at="7", file="pbmc.h5ad"),))
    monkeypatch.setattr(downloads, "ZENODO", f"{server.base}/api/records")
    entry = {"key": "pbmc.h5ad", "size": len(cells), "links": {"self": f"{server.base}/content"}}

    def answer(checksum):
        record = {"files": [{**entry, "checksum": checksum}, {**entry, "key": "other.h5ad"}]}
        server.add("/api/records/7", json.dumps(record).encode(), kind="application/json", answers=[503])

    server.add("/content", cells)
    answer("md5:" + "f" * 32)
    ran = pbmc()
    assert ran.code == 2
    assert "md5:" + "f" * 32 in error_lines(ran)[0]
    assert list(folder.iterdir()) == []
    answer("md5:" + hashlib.md5(cells).hexdigest())
    ran = pbmc()
    assert ran.code == 0, ran.err
    assert "checksum as Zenodo states it" in ran.out


def test_zenodo_without_the_file_lists_what_there_is(server, pbmc, monkeypatch):
    stated(monkeypatch, sources=(registry.Source(kind="zenodo", at="7", file="pbmc.h5ad"),))
    monkeypatch.setattr(downloads, "ZENODO", f"{server.base}/api/records")
    server.add("/api/records/7", b'{"files": [{"key": "data.zip"}]}', kind="application/json")
    ran = pbmc()
    assert ran.code == 2
    assert "has no pbmc.h5ad; it has: data.zip" in error_lines(ran)[0]
    server.add("/api/records/7", b"<html>", kind="text/html")
    assert "did not answer with JSON" in error_lines(pbmc())[0]
