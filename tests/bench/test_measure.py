"""The bench's arithmetic: medians, spreads, bars, percentiles, slopes, and who takes turns when."""

from __future__ import annotations

import pytest

from bench.measure import CandidateError, interleave, judge, missing, percentile, ratio, row, slope


def test_a_ratio_is_the_median_of_the_rounds_ratios_not_the_ratio_of_medians() -> None:
    measured = ratio("x", [10, 30, 20], [10, 10, 40], peer="p", bar=1.0)
    assert (measured.value, measured.median, measured.spread, measured.holds) == (1.0, 1.0, (0.5, 3.0), True)


def test_rounds_that_do_not_pair_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio("x", [1.0, 2.0], [1.0], peer="p")


@pytest.mark.parametrize(
    ("median", "unit", "bar", "holds"),
    [
        (1.3, "ratio", 1.3, True),
        (1.29, "ratio", 1.3, False),
        (1.9, "ms", 2.0, True),
        (2.1, "ms", 2.0, False),
        (1.6, "s", 1.5, False),
        (-3.0, "MiB/min", 1.0, True),
        (5.0, "texts/s", None, None),
    ],
)
def test_a_bar_is_the_least_of_a_ratio_and_the_most_of_a_time(
    *, median: float, unit: str, bar: float | None, holds: bool | None
) -> None:
    assert judge(median, unit, bar) is holds
    assert row("x", [median], unit, bar=bar).holds is holds


def test_what_was_not_measured_stands_in_the_results_with_its_reason() -> None:
    told = missing("x", "no such peer", bar=1.3).as_json()
    assert told["holds"] is None
    assert told["value"] is None
    assert told["note"] == "no such peer"
    assert "note" not in row("x", [1.0], "ratio").as_json()


@pytest.mark.parametrize(("share", "expected"), [(0.5, 10), (0.95, 19), (0.951, 20), (1.0, 20), (0.0, 1)])
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: int) -> None:
    assert percentile(list(range(20, 0, -1)), share) == expected


def test_a_slope_and_how_sure_it_is() -> None:
    times = [0.0, 1.0, 2.0, 3.0]
    assert slope(times, [5.0, 7.0, 9.0, 11.0]) == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-9))
    # By hand: residuals -0.2, 0.6, -0.6, 0.2 around 0.6 + 1.6 t; squares 0.8 over 2 degrees of freedom and 5 of time.
    per_time, error = slope(times, [0.4, 2.8, 3.2, 5.6])
    assert (per_time, error) == (pytest.approx(1.6), pytest.approx((0.8 / 2 / 5) ** 0.5))


def test_every_candidate_runs_once_a_round_and_another_one_begins_each() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    runs = {name: lambda name=name: run(name) for name in "abc"}
    rates = interleave(runs, repetitions=2, say=lambda _: None)
    assert order == [*"abc", *"bca", *"cab"]
    assert rates == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}


def test_a_candidate_that_fails_is_named_and_the_others_go_on() -> None:
    def broken() -> float:
        raise CandidateError("no memory")

    runs = {"good": lambda: 1.0, "bad": broken}
    failures: dict[str, str] = {}
    assert interleave(runs, repetitions=2, say=lambda _: None, failures=failures) == {"good": [1.0, 1.0]}
    assert failures == {"bad": "no memory"}
    with pytest.raises(CandidateError, match="no memory"):
        interleave(runs, repetitions=2, say=lambda _: None)
