"""Which collectives run beside matmuls, as the text of a program for TPUs shows it."""

import pytest

from matta_jax.sharding import overlaps

# As libtpu writes them, shortened: a loop of three turns whose gather hides behind two matmuls, and
# another one behind none; and beside it a pair of XLA's own operations.
HLO = """HloModule jit_step, is_scheduled=true

%fused_gather (p: bf16[16,128]) -> bf16[128,128] {
  %p = bf16[16,128] parameter(0)
  ROOT %g = bf16[128,128] all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

%fused_end (p: bf16[16,128]) -> bf16[128,128] {
  %p = bf16[16,128] parameter(0)
  ROOT %g = bf16[128,128] all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

%fused_matmul (a: bf16[8,128], b: bf16[128,128]) -> bf16[8,128] {
  %a = bf16[8,128] parameter(0)
  %b = bf16[128,128] parameter(1)
  ROOT %c = bf16[8,128] convolution(%a, %b), dim_labels=bf_io->bf
}

%fused_nest (a: bf16[8,128], b: bf16[128,128]) -> bf16[8,128] {
  %a = bf16[8,128] parameter(0)
  %b = bf16[128,128] parameter(1)
  ROOT %inner = bf16[8,128] fusion(%a, %b), kind=kOutput, calls=%fused_matmul
}

%body (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128] parameter(0)
  %f0 = bf16[8,128] fusion(%p, %w), kind=kOutput, calls=%fused_matmul
  %async-collective-start = (bf16[16,128], u32[]) fusion(%s), kind=kCustom, calls=%fused_gather
  %f1 = bf16[8,128] fusion(%f0, %w), kind=kOutput, calls=%fused_matmul
  %f2 = bf16[8,128] fusion(%f1, %w), kind=kOutput, calls=%fused_nest
  %async-collective-done = bf16[128,128] fusion(%x), kind=kCustom, calls=%fused_end
  %async-collective-start.1 = (bf16[16,128], u32[]) fusion(%s), kind=kCustom, calls=%fused_gather
  %async-collective-done.1 = bf16[128,128] fusion(%y), kind=kCustom, calls=%fused_end
  ROOT %f3 = bf16[8,128] fusion(%f2, %w), kind=kOutput, calls=%fused_matmul
}

%condition (p: bf16[8,128]) -> pred[] {
  %p = bf16[8,128] parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128] parameter(0)
  %gather-start.4 = (f32[16], f32[128]) all-gather-start(%b), replica_groups=[1,8]<=[8]
  %loop = bf16[8,128] while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %gather-done.2 = f32[128] all-gather-done((f32[16], f32[128]) %gather-start.4)
  %lonely = f32[128] all-reduce(%gather-done.2), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %f = bf16[8,128] fusion(%loop, %w), kind=kOutput, calls=%fused_matmul
}
"""


def test_a_pair_is_told_with_the_matmuls_between_and_how_often_it_runs():
    told = {
        (overlap.collective.kind, overlap.collective.bytes, overlap.collective.times): (
            overlap.matmuls
        )
        for overlap in overlaps(HLO)
        if overlap.matmuls
    }
    # The loop as a whole stands between the outer pair, and multiplies.
    assert told == {("all-gather", 128 * 128 * 2, 3): 2, ("all-gather", 512, 1): 1}
    assert [overlap.matmuls for overlap in overlaps(HLO) if not overlap.matmuls] == [0]


def test_a_program_without_pairs_has_none():
    lines = [line for line in HLO.splitlines() if "-done" not in line]
    assert overlaps("\n".join(lines)) == []


@pytest.mark.parametrize("listed", ["%small, %body", "%body, %small"])
def test_of_branches_the_one_that_moves_most_counts(listed):
    """The small one hides as many, of which it moves less."""
    small = HLO[HLO.index("%fused_gather") : HLO.index("%condition")]
    for name in ("fused_gather", "fused_end", "body"):
        small = small.replace(f"%{name}", f"%small_{name}")
    small = small.replace("bf16[128,128] all-gather", "bf16[64,128] all-gather")
    head, _, main = HLO.partition("ENTRY")
    listed = listed.replace("%small", "%small_body")
    call = f"%c = bf16[8,128] conditional(%i, %a, %a), branch_computations={{{listed}}}"
    text = head + small + "ENTRY" + main.replace("  ROOT %f =", f"  {call}\n  ROOT %f =")
    sizes = sorted(overlap.collective.bytes for overlap in overlaps(text))
    assert sizes == [512, *[128 * 128 * 2] * 4]
