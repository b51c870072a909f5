"""Failed runs are told to a webhook, to Slack and by e-mail: once, with its class, and with no secret."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

import medkg
from medkg.dagster import step_failures
from medkg.dagster.alerts import Alert, AlertError, EmailAlerts, SlackAlerts, WebhookAlerts
from medkg.dagster.sensors import failed_run_alerts
from medkg.dagster.sensors.outbox import LONGEST_WAIT, Outbox

from .mailbox import Mailbox, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.requirement("isolation 11.5")
HIDDEN = "T000/B000/very-hidden"
BEARER = "hidden-bearer"
WORD = "hidden-word"


class Receiver(ThreadingHTTPServer):
    """Takes what is POSTed, with the status it is told to answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.got: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/{HIDDEN}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keeps the test's output quiet."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    with serving(server):
        yield server


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    server = Mailbox()
    with serving(server):
        yield server


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


ALERT = Alert("k", "GPU failure in literature", "<b>the GPU fell off</b>", failure_class="GPU", facts={"step": "embed"})


@dg.op
def embed(context) -> None:
    with step_failures(context):
        raise medkg.GpuLostError(
            "the GPU fell off the bus",
            code="FAILED_PRECONDITION",
            reason="GPU_LOST",
            endpoint="http://gpu-1:7070",
            request_id="request-7",
        )


@dg.op
def divide() -> None:
    raise ZeroDivisionError("no medkg here")


@dg.job
def literature() -> None:
    embed()


@dg.job
def other() -> None:
    divide()


def tick(
    sensor: dg.SensorDefinition, instance: dg.DagsterInstance, cursor: str | None, resources: dict[str, Any]
) -> tuple[str | None, str]:
    """The new cursor and what the page shows."""
    with dg.build_sensor_context(instance, cursor=cursor, resources=resources) as context:
        done = sensor.evaluate_tick(context)
    return done.cursor, done.skip_message or ""


def test_a_failed_run_is_told_everywhere_once_with_its_class(
    instance: dg.DagsterInstance, receiver: Receiver, mailbox: Mailbox
) -> None:
    channels = {
        "hook": WebhookAlerts(url=receiver.url, token=BEARER),
        "slack": SlackAlerts(url=receiver.url),
        "mail": EmailAlerts(
            host="127.0.0.1",
            port=mailbox.port,
            security="none",
            sender="medkg@hospital.test",
            recipients=["oncall@hospital.test", "lab@hospital.test"],
            user="medkg",
            password=WORD,
        ),
    }
    sensor = failed_run_alerts([*channels], ui="http://dagster:3000/")
    literature.execute_in_process(instance=instance, raise_on_error=False)  # before it is turned on: not told
    cursor, _ = tick(sensor, instance, None, channels)
    failed = literature.execute_in_process(instance=instance, raise_on_error=False)
    for _ in range(3):
        literature.execute_in_process(instance=instance, raise_on_error=False)
    cursor, said = tick(sensor, instance, cursor, channels)
    assert said == "1 failures told, 0 alerts waiting"
    ((path, headers, hook), (_, _, slack)) = receiver.got
    assert path == f"/{HIDDEN}"
    assert headers["Authorization"] == f"Bearer {BEARER}"
    assert hook["failure_class"] == "GPU"
    assert hook["facts"] == {
        "job": "literature",
        "run": failed.run_id,
        "step": "embed",
        "server": "http://gpu-1:7070",
        "request": "request-7",
        "code": "FAILED_PRECONDITION",
        "reason": "GPU_LOST",
        "link": f"http://dagster:3000/runs/{failed.run_id}",
    }
    assert "GPU failure in literature" in slack["text"]
    assert "the GPU fell off the bus" in json.dumps(slack["blocks"])
    ((recipients, mail),) = mailbox.mails
    assert len(recipients) == 2
    assert "Subject: [medkg] error: GPU failure in literature" in mail
    assert "request: request-7" in mail
    tick(sensor, instance, cursor, channels)
    assert len(receiver.got) == 2
    assert len(mailbox.mails) == 1


def test_what_is_not_medkgs_is_told_as_such_and_other_jobs_are_passed_over(
    instance: dg.DagsterInstance, receiver: Receiver
) -> None:
    channels = {"hook": WebhookAlerts(url=receiver.url)}
    sensor = failed_run_alerts(["hook"], jobs=["other"])
    cursor, _ = tick(sensor, instance, None, channels)
    literature.execute_in_process(instance=instance, raise_on_error=False)
    other.execute_in_process(instance=instance, raise_on_error=False)
    tick(sensor, instance, cursor, channels)
    ((_, _, body),) = receiver.got
    assert body["failure_class"] == "OTHER"
    assert body["facts"]["job"] == "other"
    assert "no medkg here" in body["text"]


def test_a_channel_that_is_down_gets_it_later_and_no_secret_is_told(
    instance: dg.DagsterInstance, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    channels = {"slack": SlackAlerts(url=receiver.url)}
    sensor = failed_run_alerts(["slack"])
    cursor, _ = tick(sensor, instance, None, channels)
    literature.execute_in_process(instance=instance, raise_on_error=False)
    receiver.status = 503
    cursor, said = tick(sensor, instance, cursor, channels)
    assert "1 alerts waiting" in said
    assert "HTTP 503" in said
    assert HIDDEN not in said + caplog.text + str(cursor)
    receiver.status = 200
    cursor, said = tick(sensor, instance, cursor, channels)
    assert said == "0 failures told, 0 alerts waiting"
    assert len(receiver.got) == 2
    tick(sensor, instance, cursor, channels)
    assert len(receiver.got) == 2


@pytest.mark.parametrize("status", [302, 404, 500])
def test_an_answer_that_is_no_success_is_an_error(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(AlertError, match=f"HTTP {status}") as raised:
        WebhookAlerts(url=receiver.url).send(ALERT)
    assert HIDDEN not in str(raised.value)


def test_errors_of_channels_have_no_secret(mailbox: Mailbox) -> None:
    mailbox.refuses = True
    port = mailbox.port
    people = {"sender": "a@b.test", "recipients": ["c@d.test"], "user": "medkg", "password": WORD}
    with pytest.raises(AlertError, match="answered 535") as raised:
        EmailAlerts(host="127.0.0.1", port=port, security="none", **people).send(ALERT)
    assert WORD not in str(raised.value)
    with pytest.raises(AlertError, match="e-mail over") as raised:  # it knows no STARTTLS: nothing goes out in plain
        EmailAlerts(host="127.0.0.1", port=port, **people).send(ALERT)
    assert mailbox.mails == []
    for url in (f"http://127.0.0.1:9/{HIDDEN}", f"file:///{HIDDEN}", f"http:// /{HIDDEN}"):
        with pytest.raises(AlertError) as raised:
            SlackAlerts(url=url).send(ALERT)
        assert HIDDEN not in str(raised.value)


def test_slack_shows_the_text_as_it_is(receiver: Receiver) -> None:
    SlackAlerts(url=receiver.url).send(ALERT)
    text = receiver.got[0][2]["blocks"][1]["text"]["text"]
    assert text == "&lt;b&gt;the GPU fell off&lt;/b&gt;\n*step*: embed"


@pytest.mark.parametrize(
    ("channel", "fields"), [(WebhookAlerts, {"url", "token"}), (SlackAlerts, {"url"}), (EmailAlerts, {"password"})]
)
def test_secrets_are_marked_for_the_page(channel: type[dg.ConfigurableResource[Any]], fields: set[str]) -> None:
    schema = channel.model_json_schema()["properties"]
    assert {name for name, field in schema.items() if field.get("dagster__is_secret")} == fields


def test_what_was_only_counted_is_told_when_the_window_ends(receiver: Receiver) -> None:
    channel = {"hook": WebhookAlerts(url=receiver.url)}
    box = Outbox(60.0)
    assert [box.add(ALERT, ["hook"], now) for now in (0.0, 10.0, 59.0)] == [True, False, False]
    box = Outbox.load(json.loads(json.dumps(box.dump())), 60.0)
    box.close_windows(["hook"], 30.0)
    assert box.deliver(channel, 30.0) == []
    box.close_windows(["hook"], 61.0)
    assert box.deliver(channel, 61.0) == []
    assert [body["text"] for _, _, body in receiver.got] == [
        ALERT.text,
        f"2 more within 60 s, the last: {ALERT.text}",
    ]
    box.close_windows(["hook"], 200.0)
    assert box.dump() == {"waiting": [], "sent": {}}


def test_an_alert_that_no_channel_takes_is_given_up_after_a_day(receiver: Receiver) -> None:
    receiver.status = 500
    channel = {"hook": WebhookAlerts(url=receiver.url)}
    box = Outbox(60.0)
    box.add(ALERT, ["hook"], 0.0)
    assert box.deliver(channel, 10.0) == ["hook: webhook at 127.0.0.1: HTTP 500"]
    assert box.waiting
    assert "given up" in box.deliver(channel, LONGEST_WAIT)[-1]
    assert box.waiting == []
