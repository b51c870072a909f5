"""What a sensor has to tell and has not told yet: kept in its cursor, so that nothing is lost.

Of alerts with one key the first is sent at once, those that follow within the window are counted, and one alert at its
end says how many there were. An alert that a channel did not take waits for the next tick. Delivery is at least once: a
daemon that dies between a delivery and the storing of the cursor delivers again.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from medkg.dagster.alerts import Alert, AlertError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medkg.dagster.alerts import AlertChannel

LONGEST_WAIT: Final = 86_400.0
"""Seconds after which an alert that a channel does not take is given up."""
_TICK: Final = 20.0
"""Seconds of one tick that deliveries may take; Dagster ends a sensor after 60."""
_MOST_WAITING: Final = 100


@dataclass
class Outbox:
    """Alerts that wait for channels, and what was sent lately."""

    window: float
    """Seconds in which one alert of a key is sent."""
    waiting: list[dict[str, Any]] = field(default_factory=list)
    """`{"alert", "channels", "since"}`: the channels are those that have not taken it."""
    sent: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By key: `{"at", "more", "alert"}`: when one was sent, how many were not, and the last of them."""

    @classmethod
    def load(cls, state: Mapping[str, Any], window: float) -> Outbox:
        """As `dump` gave it."""
        return cls(window, list(state.get("waiting", ())), dict(state.get("sent", {})))

    def dump(self) -> dict[str, Any]:
        """For the cursor, as JSON has it."""
        return {"waiting": self.waiting, "sent": self.sent}

    def add(self, alert: Alert, channels: Sequence[str], now: float) -> bool:
        """Takes an alert; False if it is one too many of its key and is only counted."""
        last = self.sent.get(alert.key)
        if last is not None and now - last["at"] < self.window:
            last.update(more=last["more"] + 1, alert=asdict(alert))
            return False
        self.sent[alert.key] = {"at": now, "more": 0, "alert": asdict(alert)}
        self._wait(alert, channels, now)
        return True

    def close_windows(self, channels: Sequence[str], now: float) -> None:
        """Forgets what was sent long ago; what was only counted since is told in one alert."""
        for key, last in list(self.sent.items()):
            if now - last["at"] < self.window:
                continue
            del self.sent[key]
            if last["more"]:
                alert = Alert(**last["alert"])
                text = f"{last['more']} more within {self.window:.0f} s, the last: {alert.text}"
                self.add(replace(alert, text=text), channels, now)

    def deliver(self, channels: Mapping[str, AlertChannel], now: float) -> list[str]:
        """Sends what waits, for as long as a tick may take; returns what did not work, without secrets."""
        problems: list[str] = []
        started = time.monotonic()
        broken: set[str] = set()
        left: list[dict[str, Any]] = []
        for entry in self.waiting:
            alert = Alert(**entry["alert"])
            kept = []
            for name in entry["channels"]:
                if name in broken or time.monotonic() - started > _TICK:
                    kept.append(name)
                    continue
                try:
                    channels[name].send(alert)
                except AlertError as error:
                    broken.add(name)  # one try a tick: a channel that is down must not hold up the others
                    kept.append(name)
                    problems.append(f"{name}: {error}")
            if kept and now - entry["since"] < LONGEST_WAIT:
                left.append({**entry, "channels": kept})
            elif kept:
                problems.append(f"{', '.join(kept)}: given up after {LONGEST_WAIT / 3600:.0f} h: {alert.title}")
        self.waiting = left
        return problems

    def _wait(self, alert: Alert, channels: Sequence[str], now: float) -> None:
        self.waiting.append({"alert": asdict(alert), "channels": list(channels), "since": now})
        del self.waiting[:-_MOST_WAITING]
