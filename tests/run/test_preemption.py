"""Guards that the first signal requests a stop, the second ends, and the old handlers return."""

import signal

import pytest

from m3ae_tpu.run.preemption import Preemption

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_asks_to_stop_after_the_step(number, caplog):
    with Preemption() as preemption:
        assert not preemption.reached(1)
        signal.raise_signal(number)
        assert preemption.reached(2)
        assert preemption.reached(3)
    assert caplog.text.count(f"{number.name} after step 2: saving") == 1


def test_second_ctrl_c_ends_at_once():
    # Started in the background of a shell, a process inherits SIGINT ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Preemption():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize("is_signalled", [True, False])
def test_former_handlers_come_back(is_signalled):
    former = [signal.getsignal(number) for number in SIGNALS]
    with Preemption():
        assert [signal.getsignal(number) for number in SIGNALS] != former
        if is_signalled:
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == former
