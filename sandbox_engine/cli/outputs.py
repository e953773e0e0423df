"""In which forms what was judged is told, and where to: several at once, in files or on stdout."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox_engine.reports import Judged

FORMS = ("text", "json", "jsonl", "junit", "sarif", "github")
_SUMMARY = "GITHUB_STEP_SUMMARY"
_COLOURS = {"PASSED": "32", "FAILED": "31", "REJECTED": "31", "INCONCLUSIVE": "33"}


@dataclass(frozen=True, slots=True)
class Output:
    """A form, and the file that it is written to; None is standard output."""

    form: str
    file: Path | None = None


class AddForm(argparse.Action):
    """`--output FORM`: on standard output, until `-o` says otherwise."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.outputs = (*namespace.outputs, Output(values))


class SetFile(argparse.Action):
    """`-o FILE`: where the form goes that was named last, or text where none was."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        *before, last = namespace.outputs or (Output("text"),)
        if last.file is not None:
            before, last = [*before, last], Output("text")
        namespace.outputs = (*before, Output(last.form, Path(values)))


def on_stdout(outputs: Sequence[Output]) -> str:
    """Return the form of standard output; raise UsageError where several are meant for it."""
    from sandbox_engine.errors import UsageError

    forms = [output.form for output in outputs if output.file is None]
    if len(forms) > 1:
        raise UsageError(
            f"{' and '.join(f'`{form}`' for form in forms)} cannot both be on standard output",
            remedy="give all but one a file: `--output junit -o junit.xml`",
        )
    return forms[0] if forms else "text"


def render(form: str, judged: Sequence[Judged], *, is_one: bool) -> str:
    """Return what was judged in `form`; `is_one` says that a single patch was asked about."""
    from sandbox_engine.reports import records, text

    match form:
        case "json":
            return records.one(judged[0]) if is_one and judged else records.several(judged)
        case "jsonl":
            return "".join(f"{records.line(one)}\n" for one in judged)
        case "junit":
            from sandbox_engine.reports import junit

            return junit.render(judged)
        case "sarif":
            from sandbox_engine.reports import sarif

            return sarif.render(judged)
        case "github":
            from sandbox_engine.reports import github

            return f"{text.render(judged)}{github.commands(judged)}"
        case _:
            return text.render(judged)


def show(form: str, judged: Sequence[Judged], *, is_one: bool) -> None:
    """Print what was judged in `form`."""
    print(_tinted(form, render(form, judged, is_one=is_one)), end="")
    if form == "github":
        _add_step_summary(judged)


def show_line(form: str, judged: Judged) -> None:
    """Print one of several as soon as it is done, where the form has a line for each."""
    from sandbox_engine.reports import records, text

    if form == "text":
        print(_tinted(form, text.line(judged)), flush=True)
    elif form == "jsonl":
        print(records.line(judged), flush=True)


def show_rest(form: str, judged: Sequence[Judged], of: int) -> None:
    """Print what remains to be told of several when all are done; `of` were named."""
    from sandbox_engine.reports import text

    if form == "text":
        lines = [*text.details(judged), "", text.summary(judged, of)]
        print("\n".join(_tinted(form, line) for line in lines))
    elif form != "jsonl":
        show(form, judged, is_one=False)


def write_files(outputs: Sequence[Output], judged: Sequence[Judged], *, is_one: bool) -> None:
    """Write every form that has a file."""
    for output in outputs:
        if output.file is not None:
            write(output.file, render(output.form, judged, is_one=is_one))


def write_page(file: Path | None, judged: Sequence[Judged]) -> None:
    """Write the page of what was judged, where one is wanted."""
    if file is not None:
        from sandbox_engine.reports import page

        write(file, page.render(judged))


def write(file: Path, content: str) -> None:
    """Write `content` whole or not at all; raise UsageError where that cannot be."""
    from sandbox_engine import disk
    from sandbox_engine.errors import UsageError

    try:
        disk.write_whole(file, content.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(
            f"`{file}` cannot be written: {error.strerror}",
            remedy="name a file in a folder that exists and that you may write to",
        ) from error


def _tinted(form: str, text: str) -> str:
    """Return `text` with the outcome that it begins with in colour, where that is wanted."""
    word = text.partition(":")[0].partition(" ")[0]
    if form != "text" or word not in _COLOURS or not _wants_colour():
        return text
    return f"\033[{_COLOURS[word]}m{word}\033[0m{text[len(word) :]}"


def _wants_colour() -> bool:
    """Tell whether standard output takes colour; see https://no-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (
        sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    )


def _add_step_summary(judged: Sequence[Judged]) -> None:
    """Add what was judged to the summary of a GitHub Actions step, where there is one."""
    from sandbox_engine.reports import github

    if path := os.environ.get(_SUMMARY):
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(github.summary(judged))
