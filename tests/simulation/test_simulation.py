"""Clusters in virtual time under drawn faults: no promise is broken, and a healed cluster finds itself again."""

import secrets

import pytest

from fsm.effects import AnyEffect
from tests.simulation.cluster import Cluster
from tests.simulation.kernel import MS, Clock, Kernel, Process, Signal, Work
from tests.simulation.run import run

FIXED = (1, 3, 6, 9, 13, 30, 31, 44)
"""Seeds that found something once, in the agent or in the models."""
FRESH = tuple(secrets.randbelow(1 << 31) for _ in range(4))


@pytest.mark.parametrize("seed", FIXED)
def test_promises_are_kept_when_known_bad_luck_comes_again(seed: int) -> None:
    """Never two primaries, no acknowledged commit lost in a synchronous mode, one primary and streaming standbys."""
    ending = run(seed)
    assert ending.broken is None, f"make sim SEED={seed}"


def test_promises_are_kept_when_fresh_bad_luck_comes() -> None:
    """Other seeds each time; the message names the one to repeat."""
    for seed in FRESH:
        ending = run(seed)
        assert ending.broken is None, f"make sim SEED={seed}: {ending.broken}"


def test_run_is_the_same_when_the_seed_is_the_same() -> None:
    """To the last decision."""
    one, other = run(7, has_journal=True), run(7, has_journal=True)
    assert one.cluster.journal is not None
    assert one.cluster.journal == other.cluster.journal
    assert len(one.cluster.journal) > 1_000


# ---- the kernel ------------------------------------------------------------------------------------------------------


def test_process_is_called_later_when_it_was_paused_and_never_when_it_was_killed() -> None:
    """In the order in which it should have been."""
    kernel, process = Kernel(1), Process("p")
    called: list[int] = []
    for number in range(3):
        kernel.after(process, number * MS, called.append, number)
    kernel.pause(process)
    kernel.run(10 * MS)
    assert called == []
    kernel.resume(process)
    kernel.run(20 * MS)
    assert sorted(called) == [0, 1, 2]
    kernel.after(process, MS, called.append, 3)
    kernel.kill(process)
    kernel.after(process, MS, called.append, 4)  # such as news from another process that does not know of its end yet
    kernel.run(25 * MS)
    kernel.revive(process)
    kernel.run(30 * MS)
    assert not {3, 4} & set(called)


def test_work_goes_on_once_when_its_signal_and_its_time_come_together() -> None:
    """Whichever comes first; the other one is too late, also for what it waits for next."""
    kernel, process, signal = Kernel(1), Process("p"), Signal()
    seen: list[int] = []

    def work() -> Work:
        yield (signal, 5 * MS)
        seen.append(kernel.now_us)
        yield 5 * MS
        seen.append(kernel.now_us)

    kernel.start(process, work())
    kernel.after(process, 5 * MS, signal.fire)
    kernel.after(process, 6 * MS, signal.fire)
    kernel.run(30 * MS)
    assert seen == [5 * MS, 10 * MS]


@pytest.mark.parametrize("skew_ppm", [-200, 0, 200])
def test_clock_shows_an_instant_when_one_waited_for_it(skew_ppm: int) -> None:
    """Not before, and at most a moment after."""
    kernel = Kernel(1)
    clock = Clock(kernel, skew_ppm=skew_ppm, offset_ms=12_345)
    kernel.run(777_777)
    until_ms = clock.now_ms() + 30_000
    kernel.run(kernel.now_us + clock.wait_us(until_ms))
    assert until_ms <= clock.now_ms() <= until_ms + 1


def test_every_effect_has_a_performer_as_in_the_agent() -> None:
    """A new one is not forgotten in the models."""
    performers = next(iter(Cluster(1, config='{"ttl":20}').nodes.values())).agent.performers
    assert set(performers) == set(AnyEffect.__args__)
