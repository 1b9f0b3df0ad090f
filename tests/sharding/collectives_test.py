# ruff: noqa: E501  Programs are as compilers write them.
import pytest

from matta_jax.sharding import Collective, collectives

# As compilers print it: a loop that counts to 6 in its condition, a conditional, stages of two
# gathers, a scatter.
HLO = """
HloModule step

%condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%start_1 (p: f32[4]) -> f32[32] {
  %g.1 = f32[32]{0:S(1)} all-gather(%p), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="w"}
}

%start_2 (p: f32[4]) -> f32[32] {
  %g.1 = f32[32]{0:S(1)} all-gather(%p), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="w"}
}

%async_collective_fusion.9 (p: f32[4]) -> f32[32] {
  %g.2 = f32[32]{0} all-gather(%p), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="w"}
}

%done_1 (p: f32[4]) -> f32[32] {
  %g.2 = f32[32]{0} all-gather(%p), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="w"}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %async-collective-start.1 = f32[32] fusion(%p), kind=kCustom, calls=%start_1
  %async-collective-start.2 = f32[32] fusion(%p), kind=kCustom, calls=%start_2
  %m = f32[32] fusion(%p), kind=kCustom, calls=%async_collective_fusion.9
  %async-collective-done.1 = f32[32] fusion(%m), kind=kCustom, calls=%done_1
  %async-collective-done.2 = f32[32] fusion(%m), kind=kCustom, calls=%done_1
  %one = (bf16[16], bf16[2,4]) all-reduce(%a, %b), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %two = f32[16] all-reduce(%a), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%small (p: f32[4]) -> f32[4] {
  %r = f32[4] all-reduce(%p), channel_id=7, replica_groups={{0,1},{2,3}}, to_apply=%add
}

%large (p: f32[4]) -> f32[4] {
  %r = f32[100] all-reduce(%p), channel_id=8, replica_groups={{0,1},{2,3}}, to_apply=%add
}

%all-reduce-scatter.5 (p: f32[64]) -> f32[8] {
  %r = f32[64] all-reduce(%p), channel_id=9, replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%add
  ROOT %s = f32[8] dynamic-slice(%r, %i), dynamic_slice_sizes={8}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %x = (s32[], f32[8]) while(%t), condition=%other, body=%small, backend_config={"known_trip_count":{"n":"3"}}
  %c = f32[4] conditional(%i, %p, %p), branch_computations={%small, %large}
  %s = f32[8] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.5
  %t = (f32[10], f32[10], u32[]) collective-permute-start(%p), channel_id=11, source_target_pairs={{0,1}}
  %u = f32[10] collective-permute-done(%t)
}
"""


def test_every_collective_counts_once_for_each_time_that_it_runs():
    found = collectives(HLO)
    rows = [(each.kind, each.bytes, each.times, each.in_loop, each.group) for each in found]
    assert sorted(rows) == [
        ("all-gather", 128, 6, True, 4),  # Two alike, of one line of code.
        ("all-gather", 128, 6, True, 4),
        ("all-reduce", 16, 3, True, 2),
        ("all-reduce", 48, 6, True, 8),
        ("all-reduce", 64, 6, True, 8),
        ("all-reduce", 400, 1, False, 2),  # Of the two branches the larger one.
        ("collective-permute", 40, 1, False, 1),
        ("reduce-scatter", 32, 1, False, 8),
    ]
    assert {each.shapes for each in found if each.bytes == 48} == {((16,), (2, 4))}


RECV = """
HloModule step

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %send = (bf16[128,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%b, %t), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (bf16[128,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) recv(%t), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%other, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %recv.2 = (f32[10]{0}, u32[], token[]) recv(%t), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1:4}x{0:7}",_xla_megascale_transfer_type="ONE_TO_ONE"}
}
"""


def test_what_goes_from_slice_to_slice_is_told_apart():
    rows = [
        (each.kind, each.bytes, each.times, each.group, each.crosses_slices)
        for each in collectives(RECV)
    ]
    assert sorted(rows) == [
        ("all-reduce", 128 * 8 * 128 * 2, 3, 2, True),
        ("collective-permute", 40, 1, 4, True),
    ]
    assert not any(each.crosses_slices for each in collectives(HLO))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 75),
        ("all-reduce", 150),
        ("reduce-scatter", 300),
        ("all-to-all", 75),
        ("collective-permute", 100),
    ],
)
def test_what_a_device_sends(kind, sent):
    assert Collective(kind, ((25,),), 100, 7, False, 4).sent == sent
