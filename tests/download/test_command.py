"""The options: what is listed, chosen, compared, refused."""

import json
import subprocess
import sys

import pytest

from sctool.data.demo import CELLS
from sctool.data.download import registry
from tests.download.conftest import finished


def test_list_names_every_set_with_its_licence_and_whether_it_is_here(sctool, pbmc):
    pbmc("--from-file", CELLS.path)
    ran = sctool("download", "list", "--json")
    listed = {(entry["group"], entry["name"]): entry for entry in json.loads(ran.out)["data_sets"]}
    assert len(listed) == 12
    assert [name for group, name in listed if group == "cradle"] == ["norman", "dixit", "replogle", "adamson"]
    assert [name for group, name in listed if group == "sctab"] == ["blood", "all", "neurons", "heart", "kidney"]
    assert [key for key, entry in listed.items() if entry["here"]] == [("scgen", "pbmc")]
    assert all(entry["licence"] and entry["citation"] and entry["pages"] for entry in listed.values())
    table = sctool("download", "list").out
    assert "not stated" in table
    assert "4 MB" in table


def test_registry_is_frozen_and_its_addresses_are_whole():
    with pytest.raises(ValueError, match="frozen"):
        registry.data_sets()[0].name = "other"
    for entry in registry.data_sets():
        assert entry.file.endswith(".h5ad")
        assert all(source.page.startswith("https://") for source in entry.sources)
        assert all(source.file for source in entry.sources if source.kind == "zenodo")


@pytest.mark.parametrize(
    ("words", "said", "remedy"),
    [
        (("scgen", "--only", "pbcm"), "scgen has no data set 'pbcm'", "did you mean 'pbmc'?"),
        (("scgen", "--url", "http://127.0.0.1/x"), "3 are chosen: pbmc, hpoly, species", "--only pbmc"),
        (("scgen", "--only", "pbmc", "--url", "my.h5ad"), "no http or https address", "--from-file"),
        (("scgen", "--from-file", CELLS.path), "3 are chosen: pbmc, hpoly, species", "--only pbmc"),
        (("scgen", "--only", "pbmc", "--from-file", "nowhere.h5ad"), "nowhere.h5ad (--from-file) is not there", "the file itself"),
        (("scgen", "--only", "pbmc", "--from-file", "."), "is a folder", "the file itself"),
        (("scgen", "--offline", "--url", "http://x"), "--url and --offline exclude each other", "one of them"),
    ],
)
def test_mistakes(sctool, tmp_path, words, said, remedy):
    ran = sctool("download", *words)
    assert ran.code == 2
    assert said in ran.err
    assert remedy in ran.err
    assert "Traceback" not in ran.err


def test_offline_names_what_is_missing_and_how_to_get_it(sctool, server, pbmc, folder):
    pbmc("--from-file", CELLS.path)
    ran = sctool("download", "scgen", "--offline")
    assert ran.code == 2
    assert "pbmc.h5ad: 4 MB" in ran.out
    assert "as recorded on" in ran.out
    for name in ("hpoly", "species"):
        assert f"{name} is not here" in ran.err
        assert f"sctool download scgen --only {name}" in ran.err
    assert "https://www.dropbox.com/s/7ngt0hv21hl2exn/train_hpoly.h5ad and add --from-file PATH" in ran.err
    assert finished(folder) == ["pbmc.h5ad"]


def test_offline_finds_a_file_that_has_changed(pbmc, folder):
    pbmc("--from-file", CELLS.path)
    assert pbmc("--offline").code == 0
    recorded = json.loads((folder / "checksums.json").read_text())["pbmc.h5ad"]["checksum"]
    (folder / "pbmc.h5ad").write_bytes(CELLS.path.with_name("treated.h5ad").read_bytes())
    ran = pbmc("--offline")
    assert ran.code == 2
    assert "pbmc is not the file seen before" in ran.err
    assert recorded in ran.err


def test_offline_finds_a_file_that_is_damaged(pbmc, folder):
    folder.mkdir(parents=True)
    (folder / "pbmc.h5ad").write_bytes(CELLS.path.read_bytes()[:100_000])
    ran = pbmc("--offline")
    assert ran.code == 2
    assert "cut short" in ran.err
    assert "--force" in ran.err


def test_another_file_than_the_recorded_one_needs_force(server, pbmc, folder, cells):
    url = f"{server.base}/x"
    server.add("/x", cells)
    assert "recorded on first use" in pbmc("--url", url).out
    (folder / "pbmc.h5ad").unlink()
    server.add("/x", cells)
    assert "as recorded on" in pbmc("--url", url).out
    (folder / "pbmc.h5ad").unlink()
    server.add("/x", CELLS.path.read_bytes(), etag='"2"')
    ran = pbmc("--url", url)
    assert ran.code == 2
    assert "pbmc is not the file seen before: sha256:" in ran.err
    assert "--force" in ran.err
    assert finished(folder) == []
    ran = pbmc("--url", url, "--force")
    assert ran.code == 0
    assert "not the one recorded on" in ran.out
    assert (folder / "pbmc.h5ad").read_bytes() == CELLS.path.read_bytes()
    assert pbmc("--offline").code == 0


def test_force_replaces_only_by_a_good_file(server, pbmc, folder, cells):
    server.add("/x", cells)
    url = f"{server.base}/x"
    pbmc("--url", url)
    server.add("/x", b"hello" * 1000, etag='"2"')
    assert pbmc("--url", url, "--force").code == 2
    assert (folder / "pbmc.h5ad").read_bytes() == cells
    server.add("/x", always=503)
    assert pbmc("--url", url, "--force").code == 2
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_counts_are_required_where_the_job_needs_them(sctool, small, tmp_path):
    log = small.copy()
    log.X = log.X.multiply(1e4 / log.X.sum(1)).tocsr().log1p()
    log.write_h5ad(tmp_path / "log.h5ad")
    ran = sctool("download", "sctab", "--only", "heart", "--from-file", tmp_path / "log.h5ad")
    assert ran.code == 2
    assert "is not the data set heart" in ran.err
    assert "log1p" in ran.err
    assert finished(tmp_path / "data" / "sctab") == []
    ran = sctool("download", "scgen", "--only", "pbmc", "--from-file", tmp_path / "log.h5ad")
    assert ran.code == 0
    assert "X: log1p data" in ran.out


def test_some_of_several_failed(sctool, server, tmp_path, cells, monkeypatch):
    entries = tuple(entry.model_copy(update={"sources": ()}) for entry in registry.data_sets())
    monkeypatch.setattr(registry, "data_sets", lambda: entries)
    server.add("/m/scgen/pbmc.h5ad", cells)
    server.add("/m/scgen/species.h5ad", cells)
    ran = sctool("download", "scgen", "--mirror", f"{server.base}/m", "--json")
    assert ran.code == 3
    out = json.loads(ran.out)
    assert [file["name"] for file in out["files"]] == ["pbmc", "species"]
    assert "/m/scgen/hpoly.h5ad answered 404" in out["failed"][0]["problem"]
    assert out["files"][0]["checksum"].startswith("sha256:")
    assert ran.err.count("error:") == 1
    assert finished(tmp_path / "data" / "scgen") == ["pbmc.h5ad", "species.h5ad"]
    assert sctool("download", "scgen", "--mirror", f"{server.base}/none", "--only", "hpoly", "--json").code == 2


def test_quiet_prints_the_result_only(server, pbmc, cells):
    server.add("/x", cells, answers=[503])
    ran = pbmc("--url", f"{server.base}/x", "--quiet")
    assert ran.err == ""
    assert ran.out.startswith("data/scgen/pbmc.h5ad: 481 kB")


def test_dest(server, pbmc, tmp_path, cells):
    server.add("/x", cells)
    assert pbmc("--url", f"{server.base}/x", "--dest", "elsewhere").code == 0
    assert (tmp_path / "elsewhere" / "scgen" / "pbmc.h5ad").exists()
    (tmp_path / "a-file").write_text("")
    ran = pbmc("--url", f"{server.base}/x", "--dest", "a-file")
    assert ran.code == 2
    assert "--dest" in ran.err
    assert "Traceback" not in ran.err


def test_dropbox_links_become_links_to_the_file():
    from sctool.data.download.downloads import _direct

    assert _direct("https://www.dropbox.com/s/a/b.h5ad") == "https://www.dropbox.com/s/a/b.h5ad?dl=1"
    assert _direct("https://www.dropbox.com/s/a/b.h5ad?dl=0") == "https://www.dropbox.com/s/a/b.h5ad?dl=1"
    assert _direct("https://www.dropbox.com/scl/fi/a/b.h5ad?rlkey=k&dl=0") == "https://www.dropbox.com/scl/fi/a/b.h5ad?rlkey=k&dl=1"
    assert _direct("https://example.org/b.h5ad?dl=0") == "https://example.org/b.h5ad?dl=0"


def test_list_and_help_stay_light():
    code = (
        "import sys; from sctool.cli.main import main; sys.argv = ['sctool', 'download', 'list', '--quiet']\n"
        "main()\n"
        "assert not {'torch', 'scanpy', 'anndata', 'h5py', 'numpy', 'requests', 'gdown'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
