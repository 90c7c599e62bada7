"""Files and folders that are written whole or not at all, also after a power cut.

* `write`, `write_folder`   give a file or a folder its name once its content is on the disk
* `seal`, `read_seal`   keep, in a folder's last file, the sha256 of its other files
* `check_writable`   refuses a folder that cannot be written, before any work
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from qa_lib.settings.params import UserError
from qa_lib.settings.spec import canonical, digest_file

SEAL = "complete"  # the name of a sealed folder's last file
PROBE = b"\0" * 2**20  # a disk must have room for this; a page has about as many bytes


def sync(path: Path):
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def write(path: Path, content: str | bytes):
    """Write a file whole or not at all. A failure, of a full disk say, leaves no half behind.

    Bytes that the locale could not read as letters (in a file name, say) are written as they were.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with half.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    sync(path.parent)


def write_folder(folder: Path, make: Callable[[Path], None]):
    """Replace a folder by what `make` writes into a new folder beside it.

    One process at a time may write the same folder.
    """
    half = folder.with_name(f"{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)  # of a process that was killed
    half.mkdir(parents=True)
    make(half)
    seal(half)
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)
    sync(folder.parent)


def seal(folder: Path, **notes):
    """Write the list of a folder's files as its last file, once they are on the disk.

    notes: further values to keep there, of kinds that JSON knows.
    """
    sums = {}
    for path in sorted(folder.rglob("*")):
        sync(path)
        if path.is_file() and path.name != SEAL:
            sums[path.relative_to(folder).as_posix()] = digest_file(path)
    sync(folder)
    write(folder / SEAL, canonical({"files": sums, **notes}))
    sync(folder.parent)


def read_seal(folder: Path) -> dict | None:
    """Return what `seal` wrote, or None where the folder is not whole.

    A folder is not whole where it was never sealed, or where a file is gone or differs.
    """
    try:
        content = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        for name, sha in content["files"].items():
            if digest_file(folder / name) != sha:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return content


def digest_text(path: Path) -> str:
    """Return the sha256 of a text file, the same whether its lines end with LF or with CRLF."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def check_writable(folder: Path, variable: str):
    """Raise UserError where a folder cannot be written, or cannot be made.

    variable: the environment variable with which the user can name another folder. Writes a
    temporary file, which is removed.
    """
    place = folder.absolute()
    try:
        str(place).encode("utf-8")
    except UnicodeEncodeError:  # Python reads such letters as single bytes, Arrow cannot
        raise UserError(
            f"{folder} has letters that this locale does not know; set LC_ALL=C.UTF-8, "
            f"or set {variable} to a folder without them"
        ) from None
    while not os.path.lexists(place):
        place = place.parent
    try:
        with suppress(FileNotFoundError):
            folder.stat()  # fails where a name is too long
        with tempfile.TemporaryFile(dir=place) as f:
            f.write(PROBE)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise UserError(
            f"{folder} cannot be written ({e.strerror}: {place}); mend that, or set "
            f"{variable} to a folder that can"
        ) from None
