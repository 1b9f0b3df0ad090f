from matta_jax.training._stall import Stall


def test_silence_is_told_with_what_the_run_waits_for_at_growing_distances():
    now, lines = [0.0], []
    stall = Stall(10, lines.append, clock=lambda: now[0])
    stall.enter("the data of step 3")
    for second in (9, 10, 15, 20, 39, 40):
        now[0] = float(second)
        stall.check()
    assert lines == [
        f"no step for {second} s: the run waits for the data of step 3" for second in (10, 20, 40)
    ]

    stall.enter("the device")
    now[0] = 49.0
    stall.check()
    assert len(lines) == 3
