"""Calls in processes of their own: shared cores, results with their index, and one failure stops the rest."""

import os
import time

import pytest

from visionpulse_analysis._util.processes import available_cores, call_each


def what_it_was_given(item):
    return item, os.getpid(), os.environ.get("OMP_NUM_THREADS")


def sleep_or_fail(seconds):
    if seconds is None:
        raise ValueError("this one fails")
    if seconds < 0:
        os._exit(3)
    time.sleep(seconds)


def test_each_call_has_its_process_and_its_part_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    answers = dict(call_each(what_it_was_given, ["a", "b", "c"], 2))
    assert [answers[index][0] for index in range(3)] == ["a", "b", "c"]
    assert len({process for _, process, _ in answers.values()} | {os.getpid()}) == 4
    assert {threads for *_, threads in answers.values()} == {str(max(1, available_cores() // 2))}
    assert "OMP_NUM_THREADS" not in os.environ


def test_threads_that_the_user_set_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert [answer[2] for _, answer in call_each(what_it_was_given, ["a"], 2)] == ["7"]


def test_a_failure_is_raised_and_stops_the_others():
    start = time.monotonic()
    with pytest.raises(ValueError, match="this one fails"):
        list(call_each(sleep_or_fail, [60, None, 60], 2))
    assert time.monotonic() - start < 50


def test_a_process_that_dies_is_one_clear_error():
    with pytest.raises(RuntimeError, match="died with exit code 3"):
        list(call_each(sleep_or_fail, [-1], 2))
