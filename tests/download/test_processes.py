"""Whole processes: killed again and again, two at once, stopped by Ctrl-C, held by a limit of the system."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time

from sctool.data.demo import CELLS
from sctool.data.download.lock import locked
from tests.download.conftest import finished

CODE = "import sctool.data.download.fetch as f; f.FIRST_WAIT = 0.01; from sctool.cli.main import main; main()"


def start(cwd, url, *words, **more):
    command = [sys.executable, "-c", CODE, "download", "scgen", "--only", "pbmc", "--url", url, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **more)


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    assert condition()


def test_killed_ten_times_and_started_again(server, tmp_path, folder):
    """The bytes are right, and little is sent twice: what was on its way at each kill."""
    cells = CELLS.path.read_bytes()
    url, route = f"{server.base}/x", server.add("/x", cells, pace=0.005)
    for number in range(1, 11):
        run = start(tmp_path, url)
        until(lambda number=number: route.sent > number * len(cells) // 12)
        run.kill()
        run.communicate()
        assert finished(folder) in ([], ["pbmc.h5ad.lock"])
        assert (folder / "pbmc.h5ad.part").exists()
    run = start(tmp_path, url)
    _, err = run.communicate()
    assert run.returncode == 0, err
    assert (folder / "pbmc.h5ad").read_bytes() == cells
    assert [status for _, status in route.requests] == [200] + [206] * 10
    print(f"{route.sent / len(cells):.2f} times the size was sent")
    assert route.sent < 2 * len(cells)
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "pbmc.h5ad"]


def test_two_at_once_make_one_transfer(server, tmp_path, folder, cells):
    url, route = f"{server.base}/x", server.add("/x", cells, pace=0.1)
    runs = [start(tmp_path, url) for _ in range(2)]
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert route.requests == [(None, 200)]
    assert route.sent == len(cells)
    assert (folder / "pbmc.h5ad").read_bytes() == cells
    said = sorted(out for out, _ in outputs)
    assert "already here" in said[0] + said[1]
    assert any("another process fetches" in err for _, err in outputs)
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "pbmc.h5ad"]


def test_who_waited_holds_a_lock_that_others_see(tmp_path):
    """The holder removes the lock file on leaving; the next must not hold the removed one."""
    waits, inside, leave, seen = threading.Event(), threading.Event(), threading.Event(), []

    def second():
        with locked(tmp_path / "a", waits.set):
            seen.append((tmp_path / "a.lock").exists())
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=second)
    with locked(tmp_path / "a", lambda: None):
        thread.start()
        assert waits.wait(10)
    assert inside.wait(10)
    leave.set()
    thread.join()
    assert seen == [True]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_the_part_and_exits_130(server, tmp_path, folder, cells):
    url, route = f"{server.base}/x", server.add("/x", cells, pace=0.5)  # slow enough to be met half-way on a busy machine
    # A shell starts what it puts into the background deaf to Ctrl-C, and children inherit that.
    run = start(tmp_path, url, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until(lambda: route.sent > 200_000)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate()
    assert run.returncode == 130
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert finished(folder) == []
    kept = (folder / "pbmc.h5ad.part").stat().st_size
    route.pace = 0
    run = start(tmp_path, url)
    run.communicate()
    assert run.returncode == 0
    assert route.requests[-1] == (f"bytes={kept}-", 206)
    assert (folder / "pbmc.h5ad").read_bytes() == cells


def test_a_limit_on_the_size_of_files(server, tmp_path, folder, cells):
    """The system's own refusal in the middle of a write, here of ulimit -f; a full disk differs in its number only."""
    url, route = f"{server.base}/x", server.add("/x", cells)
    limit = 150_001
    run = start(tmp_path, url, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, err = run.communicate()
    assert run.returncode == 2
    assert "may not grow that large" in err
    assert "--dest" in err
    assert "Traceback" not in err
    assert finished(folder) == []
    assert (folder / "pbmc.h5ad.part").read_bytes() == cells[:limit]
    run = start(tmp_path, url)
    run.communicate()
    assert run.returncode == 0
    assert route.requests[-1] == (f"bytes={limit}-", 206)
    assert (folder / "pbmc.h5ad").read_bytes() == cells
