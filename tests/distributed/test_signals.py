"""Real signals to the process of the tests."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mnist_dist.distributed.signals import SIGNALS, Preemption, signals_held


@pytest.fixture(autouse=True)
def harmless() -> Iterator[None]:
    """Signals that come while no handler is installed must not end the tests."""
    previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_nothing_has_come() -> None:
    with Preemption() as preemption:
        assert preemption.received is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_remembered_and_interrupts_nothing(number: signal.Signals) -> None:
    with Preemption() as preemption:
        send(number)
        assert preemption.received == number.name
    assert preemption.received == number.name


@pytest.mark.parametrize("second", [signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2])
def test_the_first_signal_is_the_reason(second: signal.Signals) -> None:
    with Preemption() as preemption:
        send(signal.SIGUSR2)
        send(second)
        assert preemption.received == "SIGUSR2"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_control_c_after_a_signal_does_not_wait(first: signal.Signals) -> None:
    with Preemption() as preemption:
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert preemption.received == first.name


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Preemption() as preemption:
        send(signal.SIGHUP)
        assert preemption.received is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_outside_the_main_thread_nothing_is_caught() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def handlers_meanwhile() -> list[object]:
        with Preemption():
            return [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handlers_meanwhile).result() == before


def test_the_earlier_handlers_come_back() -> None:
    received = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    with Preemption():
        send(signal.SIGTERM)
        assert received == []
    send(signal.SIGTERM)
    assert received == [signal.SIGTERM]
    with pytest.raises(ZeroDivisionError), Preemption() as preemption:
        raise ZeroDivisionError
    send(signal.SIGTERM)
    assert received == [signal.SIGTERM] * 2 and preemption.received is None


def test_signals_wait_while_they_are_held() -> None:
    signal.signal(signal.SIGTERM, stop)
    done = []
    with pytest.raises(ZeroDivisionError), signals_held():
        send(signal.SIGTERM)
        done.append("all")
    assert done == ["all"]


def stop(*_: object) -> None:
    raise ZeroDivisionError
