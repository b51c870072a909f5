"""``medkg certs``: the certificates of gpu-server and its clients. What it does is done in Rust; this is its words."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from medkg.client.native import native
from medkg.errors import MedkgError

if TYPE_CHECKING:
    import argparse

__all__ = ["add"]

_HEADER = ("FILE", "SUBJECT", "USE", "NAMES", "NOT AFTER", "DAYS", "PROBLEM")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    help_ = "make, renew and look at the certificates of gpu-server and its clients"
    certs = commands.add_parser("certs", help=help_, description=f"{help_.capitalize()}.")
    actions = certs.add_subparsers(metavar="ACTION", required=True)

    init = actions.add_parser("init", help="make a certificate authority in a folder")
    _folder(init)
    init.add_argument("--name", default="medkg", help="its name; the day it was made follows in its subject")
    _days(init, native.CA_DAYS)
    init.add_argument("--force", action="store_true", help="replace one that is there: its certificates are void then")
    init.set_defaults(run=_init)

    issue = actions.add_parser("issue", help="issue a certificate")
    kinds = issue.add_subparsers(metavar="KIND", required=True)
    server = kinds.add_parser("server", help="for a gpu-server")
    server.add_argument("name", metavar="NAME", help="names the files server-NAME.pem and server-NAME.key")
    server.add_argument("--dns", action="append", default=[], help="a host name that clients use; may be repeated")
    server.add_argument("--ip", action="append", default=[], help="an address that clients use; may be repeated")
    server.set_defaults(run=_issue_server)
    client = kinds.add_parser("client", help="for a client of tenants, or for a service that calls for any tenant")
    client.add_argument(
        "name", metavar="NAME", nargs="?", help="names the files client-NAME.pem and .key; the service or one tenant"
    )
    client.add_argument("--tenant", action="append", default=[], help="a tenant to call for; may be repeated")
    client.add_argument("--service", help="a service, such as a gateway, which calls for any tenant")
    client.set_defaults(run=_issue_client)
    for kind in (server, client):
        _folder(kind)
        _days(kind, native.LEAF_DAYS)
        kind.add_argument("--force", action="store_true", help="replace one that is there")

    rotate = actions.add_parser("rotate", help="renew certificates, or exchange the authority in three steps")
    _folder(rotate)
    _within(rotate, "renew what expires within so many days")
    rotate.add_argument(
        "--ca",
        choices=("add", "use", "drop"),
        help="add: trust a new authority beside the old one; use: issue everything anew by it; drop: trust it alone",
    )
    rotate.add_argument(
        "--ca-days", type=int, metavar="DAYS", help=f"how long the new authority lives (default: {native.CA_DAYS})"
    )
    rotate.set_defaults(run=_rotate)

    inspect = actions.add_parser("inspect", help="list certificates and what is wrong with them")
    inspect.add_argument("paths", metavar="PATH", type=Path, nargs="*", help="files or folders; by default --dir")
    _folder(inspect)
    _within(inspect, "what expires within so many days is a problem")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.set_defaults(run=_inspect)


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, default=Path("certs"), metavar="FOLDER", help="default: certs")


def _days(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument("--days", type=int, help=f"how long it is valid (default: {default})")


def _within(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--days", dest="within", metavar="DAYS", type=int, help=f"{what} (default: {native.WITHIN_DAYS})"
    )


def _init(options: argparse.Namespace) -> int:
    certificate, key, until = native.certs_init(options.dir, options.name, _count(options.days), options.force)
    _say(f"{certificate}: give it to every server and client; valid until {_day(until)}")
    _say(f"{key}: signs; it stays here")
    return 0


def _issue_server(options: argparse.Namespace) -> int:
    days = _count(options.days)
    written = native.certs_issue_server(options.dir, options.name, options.dns, options.ip, days, options.force)
    return _issued(*written)


def _issue_client(options: argparse.Namespace) -> int:
    name = options.name or options.service or (options.tenant[0] if len(options.tenant) == 1 else None)
    if name is None:
        raise MedkgError("client: give --tenant or --service; with several tenants give a NAME for the files as well")
    days = _count(options.days)
    written = native.certs_issue_client(options.dir, name, options.tenant, options.service, days, options.force)
    return _issued(*written)


def _issued(certificate: Path, key: Path, until: float) -> int:
    _say(f"{certificate}: valid until {_day(until)}")
    _say(f"{key}")
    return 0


def _rotate(options: argparse.Namespace) -> int:
    if options.ca is None:
        renewals = native.certs_rotate(options.dir, _count(options.within))
    else:
        bundle, roots, renewals = native.certs_roll(options.dir, options.ca, _count(options.ca_days))
        _say(f"{bundle}: trusts {roots} {'authority' if roots == 1 else 'authorities'} now")
    renewed, kept, skipped = renewals
    for certificate, _, until in renewed:
        _say(f"{certificate}: renewed, valid until {_day(until)}")
    for certificate, until in kept:
        _say(f"{certificate}: kept, valid until {_day(until)}")
    for certificate, why in skipped:
        sys.stderr.write(f"medkg: {certificate}: not renewed: {why}\n")
    if options.ca == "add":
        _say("next: once every server and client has this ca.pem, and has made its connections anew: rotate --ca use")
    elif options.ca == "use":
        _say("next: once every server and client has its new certificate and key: rotate --ca drop")
    return 1 if skipped else 0


def _inspect(options: argparse.Namespace) -> int:
    rows, problems, good = [], [], True
    for path in options.paths or [options.dir]:
        found, beside, is_good = native.certs_inspect(path, _count(options.within))
        rows += found
        problems += beside
        good = good and is_good
    if options.json:
        keys = ("file", "subject", "uses", "names", "not_before", "not_after", "days_left", "problems")
        told = [
            dict(zip(keys, (str(file), *facts, _moment(start), _moment(end), days, wrong), strict=True))
            for file, *facts, start, end, days, wrong in rows
        ]
        _say(json.dumps({"good": good, "certificates": told, "problems": problems}, indent=2))
        return 0 if good else 1
    lines = [
        (str(file), subject, "+".join(uses), " ".join(names), _day(end), str(days), "; ".join(wrong))
        for file, subject, uses, names, _, end, days, wrong in rows
    ]
    _table([_HEADER, *lines])
    for problem in problems:
        _say(problem)
    return 0 if good else 1


def _table(lines: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        _say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _count(days: int | None) -> int | None:
    """Refuse what Rust's unsigned numbers cannot hold, in the words of the others."""
    if days is not None and not 0 <= days < 2**32:
        raise MedkgError(f"--days {days}: expected a number of days, not below 0")
    return days


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
