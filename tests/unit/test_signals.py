import os
import signal
import threading
import time

import pytest

from utils.signals import undisturbed


@pytest.fixture(autouse=True)
def handlers():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("thread", [False, True])
def test_a_signal_comes_after_the_block(number, thread):
    """Whichever thread the system gives it to."""
    done = []
    waiting = threading.Event()
    other = threading.Thread(target=waiting.wait, daemon=True)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        with undisturbed():
            if thread:
                signal.pthread_kill(other.ident, number)
            else:
                os.kill(os.getpid(), number)
            time.sleep(0.3)  # the other thread takes its time
            done.append("all of the block")
        done.append("never")
    waiting.set()
    other.join()
    assert done == ["all of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_happens_without_a_signal_and_errors_pass():
    with pytest.raises(ValueError, match="mine"), undisturbed():
        raise ValueError("mine")


def test_in_another_thread_it_does_nothing():
    def work():
        with undisturbed():
            seen.append(signal.getsignal(signal.SIGINT))

    seen = []
    (thread := threading.Thread(target=work)).start()
    thread.join()
    assert seen == [signal.default_int_handler]
