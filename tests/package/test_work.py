"""The work of a program, on programs written in HLO whose matmuls and bytes are counted by hand."""

import re

import pytest

from benchmarks.work import Device, Work, work

MATMUL_AND_SUM = """
%matmul (a: bf16[64,8], b: bf16[8,32], total: f32[64,32]) -> f32[64,32] {
  %a = bf16[64,8]{1,0} parameter(0)
  %b = bf16[8,32]{1,0} parameter(1)
  %total = f32[64,32]{1,0} parameter(2)
  %dot = f32[64,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %add = f32[64,32]{1,0} add(%dot, %total)
}

ENTRY %main (a: bf16[64,8], b: bf16[8,32], total: f32[64,32]) -> f32[64,32] {
  %a = bf16[64,8]{1,0} parameter(0)
  %b = bf16[8,32]{1,0} parameter(1)
  %total = f32[64,32]{1,0} parameter(2)
  ROOT %fusion = f32[64,32]{1,0} fusion(%a, %b, %total), kind=kCustom, calls=%matmul
}
"""
IN_PLACE_IN_A_LOOP = """
%update (all: f32[100], part: f32[10], start: s32[]) -> f32[100] {
  %all = f32[100]{0} parameter(0)
  %part = f32[10]{0} parameter(1)
  %start = s32[] parameter(2)
  %twice = f32[10]{0} add(%part, %part)
  ROOT %put = f32[100]{0} dynamic-update-slice(%all, %twice, %start)
}

%body (state: (f32[100], f32[10], s32[])) -> (f32[100], f32[10], s32[]) {
  %state = (f32[100]{0}, f32[10]{0}, s32[]) parameter(0)
  %all = f32[100]{0} get-tuple-element(%state), index=0
  %part = f32[10]{0} get-tuple-element(%state), index=1
  %start = s32[] get-tuple-element(%state), index=2
  %put = f32[100]{0} fusion(%all, %part, %start), kind=kLoop, calls=%update
  ROOT %next = (f32[100]{0}, f32[10]{0}, s32[]) tuple(%put, %part, %start)
}

%condition (state: (f32[100], f32[10], s32[])) -> pred[] {
  %state = (f32[100]{0}, f32[10]{0}, s32[]) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=2
  %turns = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%turn, %turns), direction=LT
}

ENTRY %main (state: (f32[100], f32[10], s32[])) -> (f32[100], f32[10], s32[]) {
  %state = (f32[100]{0}, f32[10]{0}, s32[]) parameter(0)
  ROOT %loop = (f32[100]{0}, f32[10]{0}, s32[]) while(%state), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""
SLICE_IN_A_NESTED_FUSION = """
%slice (all: bf16[8,320], start: s32[]) -> bf16[8,32] {
  %all = bf16[8,320]{1,0} parameter(0)
  %start = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = bf16[8,32]{1,0} dynamic-slice(%all, %zero, %start), dynamic_slice_sizes={8,32}
}

%matmul (a: bf16[64,8], all: bf16[8,320], start: s32[]) -> f32[64,32] {
  %a = bf16[64,8]{1,0} parameter(0)
  %all = bf16[8,320]{1,0} parameter(1)
  %start = s32[] parameter(2)
  %part = bf16[8,32]{1,0} fusion(%all, %start), kind=kLoop, calls=%slice
  ROOT %dot = f32[64,32]{1,0} dot(%a, %part), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: bf16[64,8], all: bf16[8,320], start: s32[]) -> f32[64,32] {
  %a = bf16[64,8]{1,0} parameter(0)
  %all = bf16[8,320]{1,0} parameter(1)
  %start = s32[] parameter(2)
  ROOT %fusion = f32[64,32]{1,0} fusion(%a, %all, %start), kind=kOutput, calls=%matmul
}
"""
SLICE_BESIDE_OTHER_WORK = """
ENTRY %main (all: s8[100]) -> s8[10] {
  %all = s8[100]{0} parameter(0)
  %slice-start = ((s8[100]{0}), s8[10]{0:S(1)}, s32[]) slice-start(%all), slice={[20:30]}
  ROOT %slice-done = s8[10]{0:S(1)} slice-done(%slice-start)
}
"""
FLOPS, MOVED = 2 * 64 * 8 * 32, 2 * (64 * 8 + 8 * 32) + 2 * 4 * 64 * 32


@pytest.mark.parametrize(
    ("device", "seconds"),
    [(Device(peak=2.0, bandwidth=1e9), FLOPS / 2), (Device(peak=1e9, bandwidth=4.0), MOVED / 4)],
    ids=["slow at multiplying", "slow at reading"],
)
def test_matmul_takes_the_longer_of_multiplications_and_bytes(device, seconds):
    assert work(MATMUL_AND_SUM, device) == Work(1, seconds, 1, 0, seconds)


@pytest.mark.parametrize("tells", [True, False], ids=["tells its turns", "does not"])
def test_update_in_place_moves_only_its_part_in_each_turn_of_the_loop(tells):
    text = IN_PLACE_IN_A_LOOP if tells else re.sub(", backend_config=.*", "", IN_PLACE_IN_A_LOOP)
    assert ("known_trip_count" in text) == tells
    # A turn reads the part and the start, and writes the part. The condition reads two numbers and writes one.
    moved = 5 * (4 * 10 + 4 + 4 * 10) + 5 * (4 + 4 + 1)
    assert work(text, Device(1.0, 2.0)) == Work(10, 0, 0, moved, moved / 2)


def test_matmul_reads_only_the_slice_that_a_nested_fusion_takes():
    moved = 2 * 64 * 8 + 2 * 8 * 32 + 4 + 4 * 64 * 32
    assert work(SLICE_IN_A_NESTED_FUSION, Device(1e9, 1.0)) == Work(1, moved, 0, 0, moved)


def test_slice_into_fast_memory_reads_only_its_part():
    assert work(SLICE_BESIDE_OTHER_WORK, Device(1.0, 2.0)).bytes_beside == 10
