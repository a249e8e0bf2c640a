"""Runs as processes of their own: kills, Ctrl-C, loops of the shell, output that is no terminal."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

COMMAND = [sys.executable, "-m", "sctool", "train", "scvi"]


def start(cwd, *words):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*COMMAND, *map(str, words)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


LONG = [
    "--ar",
    "--epochs",
    "40",
    "--n-top-genes",
    "100",
    "--n-hidden",
    "16",
    "--threads",
    "1",
    "--name",
    "r",
    "--set",
    "train.checkpoint_seconds=0",
]


def killed_and_resumed(small_file, cwd, moments):
    """Kill -9 a run again and again and resume it; the weights at the end."""
    cwd.mkdir()
    part = cwd / "checkpoints" / "scvi" / "r.part"
    for moment in moments:
        run = start(cwd, small_file, *LONG, "--resume")
        while run.poll() is None and not (part / "settings.json").exists():
            time.sleep(0.01)
        time.sleep(moment)
        run.kill()
        run.communicate()
    run = start(cwd, small_file, *LONG, "--resume")
    _, err = run.communicate()
    assert run.returncode == 0, err
    return (cwd / "checkpoints" / "scvi" / "r" / "model.safetensors").read_bytes()


def test_kill_9_and_resume(small_file, tmp_path):
    whole = start(tmp_path, small_file, *LONG)
    assert whole.wait() == 0
    wanted = (tmp_path / "checkpoints" / "scvi" / "r" / "model.safetensors").read_bytes()
    assert killed_and_resumed(small_file, tmp_path / "killed", [0.15, 0.4, 0.05]) == wanted


@pytest.mark.slow
def test_kill_9_at_ten_random_moments(small_file, tmp_path):
    whole = start(tmp_path, small_file, *LONG)
    assert whole.wait() == 0
    wanted = (tmp_path / "checkpoints" / "scvi" / "r" / "model.safetensors").read_bytes()
    moments = np.random.default_rng().uniform(0, 1.0, 10)
    for index, moment in enumerate(moments):
        assert killed_and_resumed(small_file, tmp_path / f"killed{index}", [moment]) == wanted, moment


def test_ctrl_c_saves_and_exits_130(small_file, tmp_path):
    words = [
        small_file,
        "--ar",
        "--epochs",
        "200",
        "--patience",
        "0",
        "--n-top-genes",
        "100",
        "--n-hidden",
        "16",
        "--threads",
        "1",
        "--name",
        "r",
    ]
    part = tmp_path / "checkpoints" / "scvi" / "r.part"

    def run(*more, interrupt=False):
        process = start(tmp_path, *words, *more)
        while interrupt and process.poll() is None and not (part / "settings.json").exists():
            time.sleep(0.01)
        if interrupt:
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
        assert "Traceback" not in err
        return process.returncode, err

    code, err = run(interrupt=True)
    assert code == 130, err
    assert "--resume" in err
    interrupted = err
    assert (part / "state.safetensors").exists()
    code, err = run()
    assert code == 2
    assert "unfinished run" in err
    code, err = run("--resume", "--lr", "0.1")
    assert code == 2
    assert "other settings: train was" in err
    code, err = run("--resume")
    assert code == 0, err
    if "in epoch 1;" not in interrupted:  # a slow machine may not have finished one
        assert "resumed after" in err
    assert not part.exists()


def test_plain_lines_without_a_terminal(small_file, tmp_path):
    run = start(tmp_path, small_file, "--epochs", "2", "--n-top-genes", "50")
    out, err = run.communicate()
    assert "\x1b[" not in err + out
    assert "\r" not in err
    assert "all 2 epochs done" in err


@pytest.mark.slow  # the README has the same loop
def test_shell_loops_just_work(small_file, tmp_path):
    loop = (
        "for s in 0 1; do for a in ar no-ar; do "
        f"{sys.executable} -m sctool train scvi {small_file} --$a --seed $s --name $a-$s --epochs 1 --n-top-genes 50 --quiet; done; done"
    )
    done = subprocess.run(["sh", "-ec", loop], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"checkpoints/scvi/{a}-{s}" for s in (0, 1) for a in ("ar", "no-ar")]
    assert done.stderr == ""
