"""What is seen of a transfer: a bar on a terminal, a line now and then elsewhere."""

import io

import pytest
from rich.console import Console

from sctool.cli import transfer


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(transfer.time, "monotonic", lambda: now[0])
    return now


def test_lines_every_ten_seconds_with_rate_and_time_left(clock):
    out = io.StringIO()
    reporter = transfer.TransferReporter(Console(file=out))
    reporter.start("pbmc")
    for second in range(26):
        clock[0] = 100.0 + second
        reporter(50_000_000 + second * 1_000_000, 100_000_000)
    reporter.stop()
    lines = out.getvalue().splitlines()
    assert lines == ["pbmc: 61 MB of 100 MB, 39 s left, 1 MB/s", "pbmc: 72 MB of 100 MB, 28 s left, 1 MB/s"]


def test_a_length_that_is_not_known(clock):
    out = io.StringIO()
    reporter = transfer.TransferReporter(Console(file=out))
    reporter.start("pbmc")
    reporter(0, None)
    clock[0] += 20
    reporter(40_000_000, None)
    assert out.getvalue() == "pbmc: 40 MB, 2 MB/s\n"


def test_a_bar_on_a_terminal_and_nothing_when_quiet():
    out = io.StringIO()
    reporter = transfer.TransferReporter(Console(file=out, force_terminal=True, width=100))
    reporter.start("pbmc")
    reporter(1_000_000, 2_000_000)
    reporter(2_000_000, 2_000_000)
    reporter.stop()
    assert "pbmc" in out.getvalue()
    assert "2.0/2.0 MB" in out.getvalue()
    silent = io.StringIO()
    reporter = transfer.TransferReporter(Console(file=silent, force_terminal=True, quiet=True))
    reporter.start("pbmc")
    reporter(1, 2)
    reporter.stop()
    assert silent.getvalue() == ""
