"""One file over HTTP, however bad the line: resumed, retried, and never taken for finished before it is.

Bytes go to ``NAME.part``, with a note whose they are (:mod:`sctool.data.download.part`). A later attempt asks for the rest with Range and
If-Range, so that a file which changed in between starts over and is never glued together from two versions. Where the server names
neither ETag nor date, nothing could tell, and the transfer starts over unless a checksum will tell at the end.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sctool.artifacts.atomic import disk_errors
from sctool.data.download.part import Origin, Unavailable, bytes_in, discard, human, is_complete, room_for, verify

if TYPE_CHECKING:
    import requests

TRIES = 5
FIRST_WAIT = 1.0
LONGEST_WAIT = 120.0
TIMEOUT = (15.0, 60.0)
CHUNK = 1 << 16

Say = Callable[[str], None]
Report = Callable[[int, int | None], None]
T = TypeVar("T")


class Transient(Exception):
    """Worth another try, not before ``wait`` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch(
    url: str,
    part: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    say: Say,
    report: Report,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Bring ``part`` to its full length.

    Parameters
    ----------
    size, checksum
        What the file must have (bytes; ``md5:...`` or ``sha256:...``), where that is known.
    say, report
        For lines, and for (bytes so far, bytes in all or None).

    Raises
    ------
    Unavailable
        The source refuses, has another file, or stays out of reach. A wrong file is removed, an unfinished one kept.
    SctoolError
        The disk refuses. What arrived is kept.
    """
    if not is_complete(part, url):
        persist(lambda: _transfer(url, part, size, checksum, report), url, lambda: bytes_in(part), say, sleep)
    try:
        if size is not None and bytes_in(part) != size:
            raise Unavailable(f"{url} has {bytes_in(part):,} bytes where {size:,} are expected")
        if checksum is not None:
            verify(part, checksum, url)
    except Unavailable:
        discard(part)
        raise


def fetch_json(url: str, say: Say, sleep: Callable[[float], None] = time.sleep) -> Any:
    """A small JSON answer, with the same patience."""

    def ask() -> Any:
        with _get(url, {}) as response:
            try:
                return response.json()
            except ValueError:
                raise Unavailable(f"{url} did not answer with JSON") from None

    return persist(ask, url, lambda: 0, say, sleep)


def persist(once: Callable[[], T], what: str, done: Callable[[], int], say: Say, sleep: Callable[[float], None]) -> T:
    """Try until it works, or ``TRIES`` times in a row brought no new byte; waits double, with jitter."""
    farthest, fruitless = done(), 0
    while True:
        try:
            return once()
        except Transient as trouble:
            fruitless = 1 if done() > farthest else fruitless + 1
            farthest = max(farthest, done())
            if fruitless >= TRIES:
                raise Unavailable(f"{what}: {trouble}, {TRIES} times", "try again later (what has arrived is kept)") from None
            backoff = FIRST_WAIT * 2 ** (fruitless - 1) * random.uniform(0.5, 1.5)  # noqa: S311 (no secret)
            wait = min(max(trouble.wait, backoff), LONGEST_WAIT)
            say(f"{trouble}; once more in {wait:.0f} s ({fruitless} of {TRIES - 1})")
            sleep(wait)


def looks_like_a_page(head: bytes) -> bool:
    """Whether data begins as HTML does."""
    return head[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def _transfer(url: str, part: Path, size: int | None, checksum: str | None, report: Report) -> None:
    """One request: the whole file, or the rest of it."""
    origin, have = Origin.of(part), bytes_in(part)
    if origin is None or origin.url != url or not (origin.validator or checksum):
        have = 0
    headers = {}
    if have and origin:
        headers["Range"] = f"bytes={have}-"
        if origin.validator:
            headers["If-Range"] = origin.validator
    with _get(url, headers) as response:
        if response.status_code == 416 or (response.status_code == 206 and not (origin and _continues(response, origin, have))):
            if origin and response.headers.get("Content-Range") == f"bytes */{have}" and origin.total in (None, have):
                with disk_errors(part, "--dest"):
                    Origin(url, origin.validator, have).write(part)
                return
            discard(part)
            raise Transient("the file has changed on the server; starting over")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise Unavailable(f"{url} answered with a web page, not with data")
        resumed = response.status_code == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else (origin.total if resumed and origin else None)
        if size is not None and total not in (None, size):
            raise Unavailable(f"{url} has {total:,} bytes where {size:,} are expected")
        pieces = _pieces(response)
        first = next(pieces, b"")
        if not resumed and looks_like_a_page(first):
            raise Unavailable(f"{url} answered with a web page, not with data")
        if total is not None:
            room_for(total - have, part.parent)
        with disk_errors(part, "--dest"):
            if not resumed:
                discard(part)  # before the sidecar changes: old bytes must never stand under a new ETag
                Origin(url, _validator(response), total).write(part)
            with part.open("ab", buffering=0) as file:
                _write(file, first)
                report(have := have + len(first), total)
                for piece in pieces:
                    _write(file, piece)
                    report(have := have + len(piece), total)
                os.fsync(file.fileno())
            if total is None:
                Origin(url, _validator(response), have).write(part)
    if total is not None and have != total:
        raise Transient(f"the connection was cut at {human(have)} of {human(total)}")


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    """An open answer worth reading (200, 206 or 416).

    Raises
    ------
    Transient
        No connection, 408, 425, 429, 5xx.
    Unavailable
        Any other answer, or an address that is none.
    """
    import requests

    from sctool import __version__

    headers = {"User-Agent": f"sctool/{__version__}", "Accept-Encoding": "identity", **headers}
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.exceptions.SSLError as error:
        raise Unavailable(
            f"{url}: its certificate is not trusted ({_short(error)})", "set the clock, or ask who runs the network"
        ) from None
    except requests.exceptions.Timeout:
        raise Transient("no answer in time") from None
    except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise Transient(f"no connection ({_short(error)})") from None
    except requests.exceptions.RequestException as error:
        raise Unavailable(f"{url}: {_short(error)}") from None
    code = response.status_code
    if code in (200, 206, 416):
        return response
    response.close()
    if code in (408, 425, 429) or code >= 500:
        raise Transient(f"answered {code} {response.reason}", _retry_after(response))
    raise Unavailable(f"{url} answered {code} {response.reason}")


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """The bytes as they are stored there, whatever the server says about their encoding: lengths and ranges are counted in those."""
    import urllib3

    try:
        yield from response.raw.stream(CHUNK, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        stalled = isinstance(error, (urllib3.exceptions.ReadTimeoutError, TimeoutError))
        raise Transient(f"nothing came for {TIMEOUT[1]:.0f} s" if stalled else "the connection was cut") from None


def _write(file: Any, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:  # an unbuffered write may take a part only, when the disk is nearly full
        rest = rest[file.write(rest) :]


def _continues(response: requests.Response, origin: Origin, have: int) -> bool:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != have:
        return False
    same_size = origin.total is None or found[2] == "*" or int(found[2]) == origin.total
    now = _validator(response)
    return same_size and (now is None or origin.validator is None or now == origin.validator)


def _validator(response: requests.Response) -> str | None:
    """The strong ETag, else the date; a weak ETag doesn't vouch for bytes."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float:
    """Seconds the server asks for: given as such, or as a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _short(error: Exception) -> str:
    """The last and most telling part of what requests and urllib3 wrap around an error."""
    text = str(error)
    if "NameResolution" in text or "resolve" in text:
        return "no such host, or no network"
    found = re.search(r"(?:\] |: )([^:\[\]()<>'\"]{4,80})['\")]*$", text)
    return found[1].strip() if found else " ".join(text.split())[:120]
