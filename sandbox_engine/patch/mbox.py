"""Mails of `git format-patch`, one or a series, read the way `git am` reads them.

The rules are those of git's `mailsplit.c` and `mailinfo.c` (2.39): what ends the message, what is
cut off a subject, which headers may stand in the body. The diffs of all mails are read in one go,
with every other line masked, so that line numbers are those of the text. Unlike git, carriage
returns at the ends of a diff's lines are kept unless the whole mail has them.
"""

from __future__ import annotations

import binascii
import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from sandbox_engine.patch.edits import CommitNote, FileDiff, Patch
from sandbox_engine.patch.faults import Faults
from sandbox_engine.patch.unified import parse_unified

MAX_HEADER_BYTES = 64 * 2**10
MAX_SUMMARY_CHARS = 100_000
MAX_MAILS = 10_000

_FROM_LINE = re.compile(rb"From [^\n]{1,200} [0-9]{1,2}:[0-9]{2}(?::[0-9]{2})? [^\n]{0,20}[0-9]{4}")
_HEADER = re.compile(rb"([A-Za-z][A-Za-z0-9-]{0,99}):[ \t]*(.*)\Z", re.DOTALL)
_FIRST_HEADER = re.compile(rb"(?:From|Return-Path|Received|Date|Subject|Message-I[dD]): ")
_IN_BODY = (b"from", b"date", b"subject")
_ESCAPED_FROM = re.compile(rb">+From ")
_ENCODED_WORD = re.compile(rb"=\?([A-Za-z0-9_.:*-]{1,40})\?([QqBb])\?([^?\s]*)\?=")
_CHARSET = re.compile(
    r"(?:us-)?ascii|utf-?8|iso-?8859-?[0-9]{1,2}|latin-?[0-9]{1,2}|(?:windows|cp)-?[0-9]{3,4}"
    r"|koi8-[ru]|gb(?:2312|k|18030)|big5|euc-(?:jp|kr)|shift_jis|iso-2022-jp",
    re.IGNORECASE,
)
_PARAMETER = r'(?:^|;)\s*{}\s*=\s*(?:"([^"]*)"|([^\s;"]+))'
_BLANK_START = re.compile(r"\A(?:[^\S\n]*\n)+")
_VERSION = re.compile(rb"[0-9]+\.[0-9]")
_MASK = b"#"
"""What stands for a line that is no diff: neither a hunk's line nor a header."""

_REMEDY = "send the mails as `git format-patch --stdout` writes them"


@dataclass(slots=True)
class _Mail:
    """One mail: its headers, unfolded, and the lines of its body."""

    headers: dict[bytes, bytes]
    body: list[bytes]
    body_line: int | None
    """Where the body starts in the text; None if it was decoded and has no lines there."""


@dataclass(slots=True)
class _Series:
    """What the mails so far gave: the text that holds only their diffs, and a note for each."""

    faults: Faults
    text: list[bytes] = field(default_factory=list)
    notes: list[CommitNote] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)


class _BadMail(Exception):
    """A mail cannot be read; the text says why."""


def starts_mail(lines: list[bytes], at: int) -> bool:
    """Return whether a mail starts at line `at`: a `From` line with a date, then headers."""
    line = lines[at]
    if not line.startswith(b"From ") or not _FROM_LINE.match(line):
        return False
    return at + 1 < len(lines) and _HEADER.match(lines[at + 1].rstrip(b"\r")) is not None


def starts_headers(lines: list[bytes], at: int) -> bool:
    """Return whether line `at` starts the headers of a mail without its `From` line."""
    if not _FIRST_HEADER.match(lines[at]):
        return False
    names = set()
    for line in lines[at : at + 100]:
        if not line.strip():
            break
        if header := _HEADER.match(line):
            names.add(header[1].lower())
    return {b"from", b"subject"} <= names


def parse_mbox(text: bytes) -> Patch:
    """Return the diffs of all mails in `text`, with who made them, when and why.

    Raises PatchSyntaxError with a finding for each mail that has no author, no diff or an encoding
    that cannot be read, and for each part of a diff that is corrupt.
    """
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    series = _Series(Faults("mails are", _REMEDY))
    starts = _mail_starts(lines)
    if not starts:
        series.faults.add(None, "the text holds no mail")
    if len(starts) > MAX_MAILS:
        series.faults.add(None, f"the text holds more than {MAX_MAILS} mails")
        starts = []
    series.text = [_MASK] * (starts[0] if starts else 0)
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
        _take_mail(series, lines, start, end)
    series.faults.require_none()
    return _with_notes(parse_unified(b"\n".join(series.text)), series)


def _mail_starts(lines: list[bytes]) -> list[int]:
    starts = [
        at for at, line in enumerate(lines) if line[:5] == b"From " and starts_mail(lines, at)
    ]
    first = next((at for at, line in enumerate(lines) if line.strip()), None)
    if first is not None and first not in starts and starts_headers(lines, first):
        starts.insert(0, first)
    return starts


def _take_mail(series: _Series, lines: list[bytes], start: int, end: int) -> None:
    try:
        mail = _read_mail(lines, start, end)
        note, diff_at = _note(mail)
        diff = mail.body[diff_at:]
        if not any(line.startswith((b"diff ", b"--- ")) for line in diff):
            raise _BadMail("the mail holds no diff; leave cover letters out of the series")
    except _BadMail as error:
        series.faults.add(start + 1, str(error), source=lines[start])
        return
    _mask_signature(diff)
    series.starts.append(len(series.text))
    series.notes.append(note)
    if mail.body_line is not None:
        series.text += [_MASK] * (mail.body_line + diff_at - len(series.text))
    series.text += diff
    series.text += [_MASK] * (end - len(series.text))


def _mask_signature(diff: list[bytes]) -> None:
    """Mask the `-- ` and version that format-patch ends with; no hunk can hold the version line."""
    last = len(diff) - 1
    while last >= 0 and not diff[last].strip():
        last -= 1
    if last >= 1 and diff[last - 1].rstrip() == b"--" and _VERSION.match(diff[last]):
        diff[last - 1 :] = [_MASK] * (len(diff) - last + 1)


def _read_mail(lines: list[bytes], start: int, end: int) -> _Mail:
    mail = _Mail({}, [], None)
    is_windows = lines[start].endswith(b"\r")
    first = start + (lines[start].startswith(b"From "))
    at = _read_headers(lines, first, end, mail)
    body = lines[at:end]
    if end == len(lines) and body and not body[-1]:
        body.pop()
    if is_windows:
        body = [line.removesuffix(b"\r") for line in body]
    decoded = _decoded_body(mail.headers, body)
    mail.body = body if decoded is None else decoded
    mail.body_line = at if decoded is None else None
    return mail


def _read_headers(lines: list[bytes], at: int, end: int, mail: _Mail) -> int:
    """Return the line after the headers and the blank line that ends them; unfold each."""
    size = 0
    name: bytes | None = None
    folded: dict[bytes, list[bytes]] = {}
    while at < end and (line := lines[at].rstrip(b"\r")):
        size += len(line)
        if size > MAX_HEADER_BYTES:
            raise _BadMail(f"the headers of the mail are longer than {MAX_HEADER_BYTES} bytes")
        if line[:1] in (b" ", b"\t") and name is not None:
            folded[name].append(line[1:])
        elif header := _HEADER.match(line):
            name = header[1].lower()
            folded[name] = [header[2].rstrip()]
        else:
            raise _BadMail("the headers of the mail are broken")
        at += 1
    mail.headers = {name: b" ".join(parts) for name, parts in folded.items()}
    return at + 1


def _note(mail: _Mail) -> tuple[CommitNote, int]:
    """Return the author, date and message of `mail`, and the line of its body with the diff."""
    diff_at = next((at for at, line in enumerate(mail.body) if _ends_message(line)), None)
    if diff_at is None:
        raise _BadMail("the mail holds no diff; leave cover letters out of the series")
    message, headers = _in_body_headers(mail.body[:diff_at], mail.headers)
    name, address = _author(headers)
    subject = clean_subject(_decode_words(headers.get(b"subject", b"")))
    charset = _parameter(headers.get(b"content-type", b""), "charset")
    text = "\n".join(_unescaped(_decode(line, charset)) for line in message)
    whole = f"{subject}\n\n{_BLANK_START.sub('', text).rstrip()}".strip()
    if not whole:
        raise _BadMail("the mail has no subject and no message")
    return CommitNote(name, address, _date(headers.get(b"date", b"")), whole, 0, 0), diff_at


def _ends_message(line: bytes) -> bool:
    """Return whether `line` ends the message: git's `patchbreak`."""
    if line.startswith((b"diff -", b"Index: ")):
        return True
    if not line.startswith(b"---"):
        return False
    is_name = line[3:4] == b" " and bool(line[4:5].strip())
    return is_name or not line[3:].strip()


def _in_body_headers(
    message: list[bytes], headers: dict[bytes, bytes]
) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Return the message without the headers that it starts with, which replace the mail's own."""
    at = 0
    while at < len(message) and not message[at].strip():
        at += 1
    found: dict[bytes, bytes] = {}
    while at < len(message) and (header := _HEADER.match(message[at])):
        if header[1].lower() not in _IN_BODY or not header[2].strip():
            break
        found[header[1].lower()] = header[2].strip()
        at += 1
    return message[at:], {**headers, **found}


def _unescaped(line: str) -> str:
    return line[1:] if line.startswith(">") and _ESCAPED_FROM.match(line.encode()) else line


def clean_subject(subject: str) -> str:
    """Return `subject` without `Re:` and `[...]` in front: git's `cleanup_subject`."""
    at = 0
    while at < len(subject):
        if subject[at : at + 3].lower() == "re:":
            at += 3
        elif subject[at] in " \t:":
            at += 1
        elif subject[at] == "[" and (end := subject.find("]", at)) >= 0:
            at = end + 1
        else:
            break
    return " ".join(subject[at:].split())


def _author(headers: dict[bytes, bytes]) -> tuple[str, str]:
    raw = headers.get(b"from", b"")
    if not raw:
        raise _BadMail("the mail has no `From:` header")
    name, address = split_address(raw.decode("utf-8", "replace")[:2_000])
    # An encoded name may hold commas and brackets, so it is decoded once it stands alone.
    decoded = _decode_words(name.encode("utf-8", "replace")).strip()
    if "@" not in address or any(char in address for char in "<>\n\0 "):
        raise _BadMail("the `From:` header holds no e-mail address")
    return _one_line(decoded) or address, _one_line(address)


def split_address(text: str) -> tuple[str, str]:
    """Return name and address of `Name <a@b>`, `a@b (Name)` or `a@b`; empty where there is none.

    The standard library's parser goes as deep as comments are nested, until the stack is full.
    """
    before, bracket, after = text.rpartition("<")
    if bracket:
        name = before.strip()
        if len(name) > 1 and name[0] == name[-1] == '"':
            name = re.sub(r"\\(.)", r"\1", name[1:-1])
        return name, after.partition(">")[0].strip()
    address, _, comment = text.strip().partition("(")
    return comment.rpartition(")")[0].strip(), address.strip()


def _one_line(text: str) -> str:
    return " ".join("".join(char for char in text if char.isprintable()).split())


def _date(raw: bytes) -> str:
    """Return the date as ISO 8601; empty where the mail has none."""
    if not raw:
        return ""
    try:
        date = parsedate_to_datetime(raw.decode("ascii", "replace")[:200])
        # "-0000" is a time in UTC from who knows where.
        return date.isoformat() + ("+00:00" if date.tzinfo is None else "")
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise _BadMail("the `Date:` header cannot be read") from error


def _decode(text: bytes, charset: str) -> str:
    """Return `text` decoded as git decodes it: as UTF-8 where nothing else is said or known."""
    name = charset if _CHARSET.fullmatch(charset) else "utf-8"
    for candidate in (name, "utf-8"):
        try:
            return text.decode(candidate)
        except (UnicodeDecodeError, LookupError):
            continue
    return text.decode("latin-1")


def _decode_words(raw: bytes) -> str:
    """Return a header with its RFC 2047 words decoded; white space between two of them goes."""
    parts: list[str] = []
    at = 0
    is_word = False
    for match in _ENCODED_WORD.finditer(raw):
        between = raw[at : match.start()]
        if between.strip() or not is_word:
            parts.append(_decode(between, "utf-8"))
        parts.append(_decode_word(match))
        at, is_word = match.end(), True
    parts.append(_decode(raw[at:], "utf-8"))
    return "".join(parts)


def _decode_word(match: re.Match[bytes]) -> str:
    charset = match[1].partition(b"*")[0].decode("ascii", "replace")
    try:
        if match[2] in b"Bb":
            return _decode(binascii.a2b_base64(match[3]), charset)
        return _decode(binascii.a2b_qp(match[3], header=True), charset)
    except binascii.Error:
        return match[0].decode("ascii", "replace")


def _decoded_body(headers: dict[bytes, bytes], body: list[bytes]) -> list[bytes] | None:
    """Return the lines of a body that is encoded or in parts; None where it stands as it is."""
    kind = headers.get(b"content-type", b"")
    if kind.lower().startswith(b"multipart/"):
        return _parts(_parameter(kind, "boundary").encode(), body)
    encoding = headers.get(b"content-transfer-encoding", b"").strip().lower()
    if encoding in (b"", b"7bit", b"8bit", b"binary"):
        return None
    raw = b"\n".join(body)
    if encoding == b"quoted-printable":
        return binascii.a2b_qp(raw).split(b"\n")
    if encoding == b"base64":
        try:
            return binascii.a2b_base64(raw).split(b"\n")
        except binascii.Error as error:
            raise _BadMail(f"the base64 of the mail is broken: {error}") from error
    raise _BadMail("the transfer encoding of the mail is not known")


def _parts(boundary: bytes, body: list[bytes]) -> list[bytes]:
    """Return the lines of all text parts of a mail with attachments, one after the other."""
    if not boundary:
        raise _BadMail("the mail is in parts but tells no boundary")
    delimiters = b"--" + boundary, b"--" + boundary + b"--"
    marks = [at for at, line in enumerate(body) if line.rstrip() in delimiters]
    lines: list[bytes] = []
    for start, end in zip(marks, [*marks[1:], len(body)], strict=False):
        if body[start].rstrip() == delimiters[1]:
            break
        part = _Mail({}, [], None)
        at = _read_headers(body, start + 1, end, part)
        kind = part.headers.get(b"content-type", b"text/plain").lower()
        if kind.startswith(b"multipart/"):
            raise _BadMail("the mail has parts within parts")
        if kind.startswith(b"text/"):
            decoded = _decoded_body(part.headers, body[at:end])
            lines += body[at:end] if decoded is None else decoded
    return lines


def _parameter(header: bytes, name: str) -> str:
    match = re.search(_PARAMETER.format(name), header.decode("ascii", "replace"), re.IGNORECASE)
    return (match[1] or match[2] or "") if match else ""


def _with_notes(patch: Patch, series: _Series) -> Patch:
    """Return `patch` as one of mails, each note with the edits that its mail holds."""
    lines = [edit.patch_line - 1 for edit in patch.edits if isinstance(edit, FileDiff)]
    bounds = [*series.starts[1:], len(series.text) + 1]
    notes = []
    first = 0
    for note, until in zip(series.notes, bounds, strict=True):
        end = first
        while end < len(lines) and lines[end] < until:
            end += 1
        notes.append(dataclasses.replace(note, first_edit=first, end_edit=end))
        first = end
    summary = "\n\n".join(note.message for note in notes)[:MAX_SUMMARY_CHARS]
    others = patch.others

    def other_readings() -> Iterable[Patch]:
        for other in others() if others else ():
            yield _with_notes(other, series)

    return dataclasses.replace(
        patch,
        format="mbox",
        summary=summary,
        commits=tuple(notes),
        others=other_readings if others else None,
    )
