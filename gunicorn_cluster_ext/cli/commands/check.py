"""``gunicorn-cluster check``: find problems in a configuration and its application.

It takes gunicorn's arguments, loads the application in two processes as workers do, and serves
nothing. The exit status is 0 without findings or with notes only, 1 with warnings, and 2 if the
server would not start, or not as it was meant to.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gunicorn_cluster_ext.cli.check.findings import Facts, Finding

# Every argument is gunicorn's, so none may look like an option of ours.
PARSER_OPTIONS: dict[str, Any] = {"prefix_chars": "\0", "add_help": False}

_USAGE = "gunicorn-cluster check GUNICORN_ARGUMENTS"
#: For reading the configuration, and for inspecting the loaded application.
EXAMINER_TIMEOUT_S = 60.0
_INDENT = " " * 9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs="*")


def run(options: argparse.Namespace) -> int:
    from gunicorn_cluster_ext.cli.check.findings import judge

    arguments = [each for each in options.arguments if each != "--"]
    if {"-h", "--help"} & set(arguments):
        description = (__doc__ or "").partition(": ")[2].strip()
        print(f"usage: {_USAGE}\n\n{description[0].upper()}{description[1:]}")
        return 0
    with tempfile.TemporaryFile("w+") as output:
        facts = _examine(arguments, output)
    findings = judge(facts)
    _print(facts, findings)
    return int(max((each.level for each in findings), default=0))


def _examine(arguments: Sequence[str], output: IO[str]) -> Facts:
    """Return what an examiner process finds; ``output`` takes what it prints."""
    reader, writer = os.pipe()
    module = "gunicorn_cluster_ext.cli.check.examiner"
    with subprocess.Popen(
        [sys.executable, "-m", module, str(writer), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=[writer],
        start_new_session=True,
    ) as examiner:
        os.close(writer)
        try:
            return _read(reader, output)
        finally:
            os.close(reader)
            try:
                # The process group contains what the application may have started, too.
                os.killpg(examiner.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def _read(reader: int, output: IO[str]) -> Facts:
    import msgspec

    from gunicorn_cluster_ext.cli.check.examiner import Lines
    from gunicorn_cluster_ext.cli.check.findings import AppFacts, ConfigFacts, Facts

    lines = Lines(reader)
    line = lines.next(EXAMINER_TIMEOUT_S)
    if line is None:
        output.seek(0)
        said = output.read().strip()
        error = "Reading the configuration takes too long."
        if said:  # gunicorn prints why it cannot read the configuration
            error = f"The configuration cannot be read.\n{said}"
        return Facts(ConfigFacts("", error))
    configuration = msgspec.json.decode(line, type=ConfigFacts)
    limit = configuration.startup_timeout
    # Twice the limit: the examiner itself loads a preloaded application, before its workers do.
    line = lines.next(EXAMINER_TIMEOUT_S + 2 * limit if limit else None)
    if line is None:
        return Facts(configuration, [AppFacts(hung=True)])
    return msgspec.json.decode(line, type=Facts)


def _print(facts: Facts, findings: Sequence[Finding]) -> None:
    of = facts.configuration
    if of.worker_class:
        threads = f" x {of.threads} threads" if of.is_threaded else ""
        print(f"{of.app}: {of.worker_class}, {of.workers} workers{threads}")
    for finding in findings:
        label = f"{finding.level.name.lower()}:".ljust(len(_INDENT))
        print(label + textwrap.indent(finding.text, _INDENT).lstrip())
        if finding.details:
            print(textwrap.indent(finding.details.rstrip(), _INDENT))
    if not findings:
        print("Nothing is wrong.")
