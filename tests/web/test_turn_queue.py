"""One slice of bulk in each turn of the loop, in the order in which it was asked for."""

import asyncio

from streamsrv.web.connection.clients import TurnQueue


async def test_who_is_alone_waits_for_nobody():
    turns = TurnQueue()
    for _ in range(3):
        assert turns.take()
        await asyncio.sleep(0)
        await turns.turn()
        await asyncio.sleep(0)


async def test_who_is_known_to_be_alone_takes_no_turns():
    several = False
    turns = TurnQueue(lambda: not several)
    assert turns.take()
    assert turns.take()
    several = True
    assert turns.take()
    assert not turns.take()


async def test_one_in_each_turn_of_the_loop_in_order():
    turns, moved = TurnQueue(), []
    assert turns.take()
    for name in "abc":
        turns.queue(lambda name=name: moved.append(name))
    assert moved == []
    for expected in ("a", "ab", "abc", "abc"):
        assert not turns.take()
        await asyncio.sleep(0)
        assert "".join(moved) == expected
    assert turns.take()


async def test_bodies_that_always_want_more_alternate():
    turns, moved = TurnQueue(), []

    async def body(name):
        for _ in range(4):
            await turns.turn()
            moved.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*map(body, "abc"))
    assert "".join(moved) == "abc" * 4


async def test_who_gives_up_costs_the_others_nothing():
    turns = TurnQueue()
    assert turns.take()
    gone = asyncio.ensure_future(turns.turn())
    await asyncio.sleep(0)
    turns.take()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    for _ in range(3):
        await asyncio.sleep(0)
    assert turns.take()
