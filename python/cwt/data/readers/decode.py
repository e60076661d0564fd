"""A file as text: gzip and Zstandard by their first bytes, byte order marks, UTF-16."""

import codecs
import gzip
import zlib
from pathlib import Path

from cwt.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its mark begins in the same way
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_bytes(path: Path) -> bytes:
    """Returns what a file holds, unpacked.

    Raises:
        UserError: no such file, one that cannot be read or unpacked, or an empty one.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from None
    try:
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        elif data.startswith(b"\x28\xb5\x2f\xfd"):
            data = _unzstd(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked: {error}.") from None
    if not data.strip():
        raise UserError(f"{path}: the file is empty.")
    return data


def decode(data: bytes, path: Path) -> str:
    """Returns the text of a file: UTF-8, or what its byte order mark or its zero bytes say.

    A byte that is not UTF-8 becomes half of a surrogate pair: `as_text` lists the row that has it.

    Raises:
        UserError: bytes that are no text.
    """
    mark, encoding = next((m for m in _MARKS if data.startswith(m[0])), (b"", ""))
    data = data.removeprefix(mark)
    if not mark:  # the first character of a JSON or CSV file is ASCII
        first, second = (byte == 0 for byte in (data + b"xx")[:2])
        encoding = "utf-16-be" if first else "utf-16-le" if second else "utf-8"
    try:
        text = data.decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as {encoding} text: {error}.") from None
    # In JSON it is for the row to say: a string with a zero byte in it is listed.
    if "\0" in text[:512] and not text.lstrip().startswith(("{", "[")):
        raise UserError(f"{path}: cannot be read as text: it holds zero bytes.")
    if not text.strip():
        raise UserError(f"{path}: the file is empty.")
    return text


def _unzstd(data: bytes) -> bytes:
    import zstandard

    parts = []
    while data:  # frame by frame, as `cat a.zst b.zst` joins them
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(data))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from None
        if not frame.eof:  # nothing else tells a file that was cut
            raise EOFError("Compressed file ended before the end of a frame")
        data = frame.unused_data
    return b"".join(parts)
