"""Alerts and where they go: a webhook, Slack, e-mail. Channels are resources, so that Dagster keeps their secrets.

A channel's address can be a secret itself (a Slack webhook is one), so no error here repeats it: what went wrong and
the host are told, no path, no query, no password.
"""

from __future__ import annotations

import json
import smtplib
import ssl
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from email.message import EmailMessage
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SECRET: dict[str, Any] = {"dagster__is_secret": True}


class AlertError(Exception):
    """A channel did not take an alert. The message has no secret in it."""


@dataclass(frozen=True)
class Alert:
    """Something a person should know."""

    key: str
    """What it is about: of alerts with one key, one is sent in a window of time."""
    title: str
    """One line."""
    text: str
    """What happened and what to do."""
    severity: Literal["error", "warning", "resolved"] = "error"
    failure_class: str = ""
    """A `FailureClass`, or `OTHER` for a failure that is not medkg's; empty where nothing failed."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Further facts by name: job, run, step, server, request id, trace id."""

    def lines(self) -> list[str]:
        """The text, then the facts, a line each."""
        return [self.text, *(f"{name}: {value}" for name, value in self.facts.items() if value)]


# No `from __future__` type of a field may be unknown at run time: pydantic reads them.
class AlertChannel(dg.ConfigurableResource[Any], ABC):
    """Where alerts go."""

    timeout: float = Field(default=5.0, gt=0, le=30, description="Seconds one alert may take on its way.")

    @abstractmethod
    def send(self, alert: Alert) -> None:
        """Sends one alert.

        Raises:
            AlertError: It was not taken; the same alert can be sent again.
        """


class WebhookAlerts(AlertChannel):
    """POSTs an alert as JSON: `key`, `title`, `text`, `severity`, `failure_class`, `facts`."""

    url: str = Field(json_schema_extra=_SECRET, description="Address, https:// or http://.")
    token: str | None = Field(default=None, json_schema_extra=_SECRET, description="Bearer token, if one is wanted.")

    def send(self, alert: Alert) -> None:
        """As `AlertChannel.send`."""
        _post(self.url, asdict(alert), self.timeout, self.token)


class SlackAlerts(AlertChannel):
    """An incoming webhook of Slack, or of what takes its JSON (Mattermost, Rocket.Chat)."""

    url: str = Field(json_schema_extra=_SECRET, description="The incoming webhook's address, a secret.")

    def send(self, alert: Alert) -> None:
        """As `AlertChannel.send`."""
        mark = {"error": ":red_circle:", "warning": ":large_yellow_circle:", "resolved": ":large_green_circle:"}
        facts = "\n".join(f"*{_escaped(name)}*: {_escaped(value)}" for name, value in alert.facts.items() if value)
        body = f"{_escaped(alert.text)}\n{facts}"[:2900]  # a section holds 3,000 characters
        sections = [f"{mark[alert.severity]} *{_escaped(alert.title)}*", body]
        blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": text}} for text in sections]
        _post(self.url, {"text": f"{alert.title}", "blocks": blocks}, self.timeout)


class EmailAlerts(AlertChannel):
    """Mail over SMTP."""

    host: str = Field(description="SMTP server.")
    port: int = Field(default=587, description="Its port.")
    security: Literal["starttls", "tls", "none"] = Field(default="starttls", description="How the line is encrypted.")
    ca_file: str | None = Field(
        default=None, description="Authority of the server's certificate, if the system does not know it."
    )
    sender: str = Field(description="Address it comes from.")
    recipients: list[str] = Field(min_length=1, description="Addresses it goes to.")
    user: str | None = Field(default=None, description="Who logs in; nobody without it.")
    password: str | None = Field(default=None, json_schema_extra=_SECRET, description="That user's password.")

    def send(self, alert: Alert) -> None:
        """As `AlertChannel.send`."""
        message = EmailMessage()
        message["Subject"] = " ".join(f"[medkg] {alert.severity}: {alert.title}".split())
        message["From"] = self.sender
        message["To"] = ", ".join(self.recipients)
        message.set_content("\n".join(alert.lines()))
        try:
            with self._connected() as server:
                if self.user is not None:
                    server.login(self.user, self.password or "")
                server.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            msg = f"e-mail over {self.host}:{self.port}: {_mail_problem(error)}"
            raise AlertError(msg) from None

    @contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        if self.security == "tls":
            with smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout, context=self._trust()) as server:
                yield server
            return
        with smtplib.SMTP(self.host, self.port, timeout=self.timeout) as server:
            if self.security == "starttls":
                server.starttls(context=self._trust())
            yield server

    def _trust(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            msg = f"ca_file of the e-mail channel: {self.ca_file} cannot be read as certificates: {error.strerror}"
            raise AlertError(msg) from None


def _mail_problem(error: Exception) -> str:
    """What went wrong with a mail, and what to do about it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is refused: {error.verify_message}. Name the authority that signed it as ca_file, and as "
            "host a name that the certificate has"
        )
    if isinstance(error, ssl.SSLError):
        return 'it does not speak TLS from the start: set security="starttls", or give the port of its TLS (often 465)'
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return f'{error}. Give its port for TLS (often 465) and security="tls", or security="none" on a line you trust'
    if isinstance(error, (smtplib.SMTPServerDisconnected, TimeoutError)):
        return f'{type(error).__name__}: no answer; a port for TLS from the start (often 465) needs security="tls"'
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the server answered {error.smtp_code}"
    return type(error).__name__


class _NoRedirect(HTTPRedirectHandler):
    """A redirected POST arrives as a GET without the alert, so a redirect is an error."""

    def redirect_request(self, *args: Any, **keywords: Any) -> None:
        """Follows nothing."""


def _post(url: str, body: Mapping[str, Any], timeout: float, token: str | None = None) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = "the address of an alert channel must be https://HOST/... or http://HOST/..."
        raise AlertError(msg)
    headers = {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    request = Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the scheme is checked above
    try:
        with build_opener(_NoRedirect).open(request, timeout=timeout):
            pass
    except HTTPError as error:
        error.close()
        msg = f"webhook at {parts.hostname}: HTTP {error.code}"
        raise AlertError(msg) from None
    except URLError as error:
        msg = f"webhook at {parts.hostname}: {type(error.reason).__name__}"
        raise AlertError(msg) from None
    except (OSError, HTTPException, ValueError) as error:
        msg = f"webhook at {parts.hostname}: {type(error).__name__}"
        raise AlertError(msg) from None


def _escaped(text: str) -> str:
    """As Slack's mrkdwn wants it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
