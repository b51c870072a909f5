"""E-mail alerts over an encrypted line: what is taken, what is refused, and what the error says to do."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from medkg.dagster.alerts import Alert, AlertError, EmailAlerts
from tests.server.authority import Authority

from .mailbox import Mailbox, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .mailbox import Line

pytestmark = pytest.mark.requirement("isolation 11.5")
ALERT = Alert("k", "GPU failure in literature", "the GPU fell off", failure_class="GPU")
WORD = "hidden-word"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whoever signed the mail server's certificate."""
    return Authority(tmp_path_factory.mktemp("authority"), "hospital")


@contextmanager
def mailbox(line: Line, authority: Authority, name: str = "localhost") -> Iterator[Mailbox]:
    """A mail server with a new certificate for a name."""
    stem = f"mail-{uuid4()}"
    authority.run("issue", "server", stem, "--dns", name)
    server = Mailbox(line, authority.files(f"server-{stem}"))
    with serving(server):
        yield server


def channel(server: Mailbox, security: str, **settings: Any) -> EmailAlerts:
    given = {
        "host": "localhost",
        "port": server.port,
        "security": security,
        "sender": "medkg@hospital.test",
        "recipients": ["oncall@hospital.test"],
        "user": "medkg",
        "password": WORD,
        "timeout": 5.0,
    }
    return EmailAlerts(**{**given, **settings})


@pytest.mark.parametrize("line", ["tls", "starttls"])
def test_a_mail_goes_over_an_encrypted_line(line: Line, authority: Authority) -> None:
    with mailbox(line, authority) as server:
        channel(server, line, ca_file=str(authority.certificate)).send(ALERT)
        ((recipients, mail),) = server.mails
    assert recipients == ["rcpt TO:<oncall@hospital.test>"]
    assert "the GPU fell off" in mail
    assert [said.split()[0].upper() for said in server.read] == (["EHLO", "STARTTLS"] if line == "starttls" else [])


@pytest.mark.parametrize("line", ["tls", "starttls"])
@pytest.mark.parametrize(
    ("trusted", "name", "reason"),
    [
        (None, "localhost", "unable to get local issuer certificate"),
        ("other", "localhost", "unable to get local issuer certificate|signature"),
        ("hospital", "mail.hospital.test", "Hostname mismatch"),
    ],
    ids=["unknown authority", "another authority", "another name"],
)
def test_a_certificate_that_is_not_trusted_gets_neither_mail_nor_password(
    line: Line, trusted: str | None, name: str, reason: str, authority: Authority, tmp_path: Path
) -> None:
    known = {"hospital": authority, "other": Authority(tmp_path, "other")}
    ca_file = None if trusted is None else str(known[trusted].certificate)
    refusal = pytest.raises(AlertError, match=f"its certificate is refused: .*({reason})")
    with mailbox(line, authority, name) as server, refusal as refused:
        channel(server, line, ca_file=ca_file).send(ALERT)
    assert "Name the authority that signed it as ca_file" in str(refused.value)
    assert WORD not in str(refused.value)
    assert server.mails == []
    assert not [said for said in server.read if said.upper().startswith(("AUTH", "MAIL"))]


@pytest.mark.parametrize(
    ("line", "security", "advice"),
    [
        ("starttls", "tls", 'set security="starttls"'),
        ("none", "starttls", 'security="tls", or security="none"'),
        ("tls", "starttls", 'needs security="tls"'),
    ],
)
def test_the_wrong_kind_of_line_is_told_with_the_right_one(
    line: Line, security: str, advice: str, authority: Authority
) -> None:
    with mailbox(line, authority) as server:
        with pytest.raises(AlertError) as refused:
            channel(server, security, ca_file=str(authority.certificate), timeout=1.0).send(ALERT)
        assert server.mails == []
    assert advice in str(refused.value)


def test_an_authority_that_cannot_be_read_is_told(authority: Authority, tmp_path: Path) -> None:
    with (
        mailbox("tls", authority) as server,
        pytest.raises(AlertError, match=r"ca_file of the e-mail channel: .*no.pem"),
    ):
        channel(server, "tls", ca_file=str(tmp_path / "no.pem")).send(ALERT)
