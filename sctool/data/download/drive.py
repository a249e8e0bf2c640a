"""One file of Google Drive, through gdown, which knows Drive's confirmation pages; its errors become one sentence with the remedy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from sctool.artifacts.atomic import disk_errors
from sctool.data.download import fetch as web
from sctool.data.download.part import Origin, Unavailable, bytes_in, is_complete, room_for


def fetch_drive(file_id: str, part: Path, *, say: web.Say, report: web.Report, sleep: Callable[[float], None] = time.sleep) -> None:
    """Bring ``part`` to its full length.

    gdown keeps an unfinished file of its own beside it, ``NAME.drive*.part``, and goes on from there. It cannot tell a file that changed in
    between; an archive's own checksums do.

    Raises
    ------
    Unavailable
        Google's limit, a missing permission, or no connection.
    """
    url = drive_url(file_id)
    if is_complete(part, url):
        return
    finished = part.with_name(f"{part.name.removesuffix('.part')}.drive")
    web.persist(lambda: _once(file_id, finished, report), "Google Drive", lambda: sum(map(bytes_in, _unfinished(finished))), say, sleep)
    with disk_errors(part, "--dest"):
        Origin(url, None, bytes_in(finished)).write(part)
        os.replace(finished, part)


def drive_url(file_id: str) -> str:
    """What a browser opens."""
    return f"https://drive.google.com/uc?id={file_id}"


def _unfinished(finished: Path) -> list[Path]:
    return list(finished.parent.glob(f"{finished.name}????????.part"))


def _once(file_id: str, finished: Path, report: web.Report) -> None:
    import gdown
    import gdown.exceptions
    import requests

    had = sum(map(bytes_in, _unfinished(finished)))
    asked = False

    def progress(done: int, total: int | None) -> None:
        nonlocal asked
        if not asked and total is not None:
            room_for(total - had, finished.parent)
        asked = True
        report(done, total)

    by_hand = f"wait 24 hours, or open {drive_url(file_id)} in a browser and give the file with --from-file"
    with disk_errors(finished, "--dest"):
        try:
            gdown.download(id=file_id, output=str(finished), quiet=True, resume=True, timeout=web.TIMEOUT, progress=progress)
        except gdown.exceptions.FileURLRetrievalError as error:
            raise Unavailable(f"Google Drive refuses the file {file_id}: {_reason(str(error))}", by_hand) from None
        except gdown.exceptions.DownloadError as error:
            raise web.Transient(" ".join(str(error).split())[:150]) from None
        except requests.exceptions.HTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            if code == 429 or code >= 500:
                raise web.Transient(f"answered {code}") from None
            raise Unavailable(f"Google Drive answered {code} for the file {file_id}", by_hand) from None
        except requests.exceptions.RequestException as error:
            raise web.Transient(f"no connection ({type(error).__name__})") from None


def _reason(text: str) -> str:
    """Which of the refusals it is; Google words them in several ways."""
    low = text.lower()
    if "too many users" in low or "quota" in low:
        return "too many people fetched it in the last day (a limit of Google's)"
    if "permission" in low or "cannot retrieve" in low:
        return "it was fetched too often in the last day, or is no longer shared"
    return " ".join(text.split())[:150]
