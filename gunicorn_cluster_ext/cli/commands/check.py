"""``gunicorn-cluster check``: what is wrong with a configuration and its application.

It takes the arguments of gunicorn, loads the application in two processes as workers do, and
serves nothing. The exit status is 0 when there is nothing to say but notes, 1 for warnings, 2 when
the server would not start, or not as it was meant to.
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

_USAGE = "gunicorn-cluster check GUNICORN_ARGUMENTS"
#: Seconds for the configuration to be read, and for what is looked at after the application.
REPLY_TIMEOUT_S = 60.0


def add(commands: Any) -> None:
    # Every argument is gunicorn's, so none may look like one of ours.
    parser = commands.add_parser(
        "check",
        help="what is wrong with a configuration and its application",
        prefix_chars="\0",
        add_help=False,
    )
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from gunicorn_cluster_ext.cli.check.findings import judge

    arguments = [each for each in options.arguments if each != "--"]
    if {"-h", "--help"} & set(arguments):
        print(f"usage: {_USAGE}\n\nSays {(__doc__ or '').partition(': ')[2].strip()}")
        return 0
    with tempfile.TemporaryFile("w+") as output:
        facts = _examine(arguments, output)
    findings = judge(facts)
    _print(facts, findings)
    return int(max((each.level for each in findings), default=0))


def _examine(arguments: Sequence[str], output: IO[str]) -> Facts:
    """What another process finds; ``output`` is for what gunicorn and the application print."""
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
            _end(examiner)


def _read(reader: int, output: IO[str]) -> Facts:
    import msgspec

    from gunicorn_cluster_ext.cli.check.examiner import Lines
    from gunicorn_cluster_ext.cli.check.findings import ApplicationFacts, ConfigurationFacts, Facts

    lines = Lines(reader)
    line = lines.next(REPLY_TIMEOUT_S)
    if line is None:
        return Facts(ConfigurationFacts("", _complaint(output)))
    configuration = msgspec.json.decode(line, type=ConfigurationFacts)
    limit = configuration.startup_timeout
    # Twice, for a preloaded application that hangs is the examiner's own.
    line = lines.next(REPLY_TIMEOUT_S + 2 * limit if limit else None)
    if line is None:
        return Facts(configuration, [ApplicationFacts(hung=True)])
    return msgspec.json.decode(line, type=Facts)


def _complaint(output: IO[str]) -> str:
    """What gunicorn said when it could not read the configuration."""
    output.seek(0)
    said = output.read().strip()
    return f"The configuration cannot be read.\n{said}" if said else "The configuration hangs."


def _end(examiner: subprocess.Popen[bytes]) -> None:
    """With all that the application may have started."""
    try:
        os.killpg(examiner.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _print(facts: Facts, findings: Sequence[Finding]) -> None:
    of = facts.configuration
    if of.worker_class:
        threads = f" x {of.threads} threads" if of.is_threaded else ""
        print(f"{of.app}: {of.worker_class}, {of.workers} workers{threads}")
    for finding in findings:
        label = finding.level.name.lower() + ":"
        print(textwrap.indent(finding.text, " " * 9).replace(" " * 9, f"{label:9}", 1))
        if finding.details:
            print(textwrap.indent(finding.details.rstrip(), " " * 9))
    if not findings:
        print("Nothing is wrong.")
