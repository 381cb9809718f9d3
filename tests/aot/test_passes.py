"""The reader of HLO, on programs with a known number of passes. The programs are written in HLO, so no compiler of an accelerator is needed."""

import pytest

from tests.support import passes

FUSED = """HloModule m

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused (p0: bf16[8,128], p1: f32[8]) -> f32[8] {
  %p1 = f32[8]{0} parameter(1)
  %p0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %wide = f32[8,128]{1,0} convert(%p0)
  ROOT %out = f32[8]{0} reduce(%wide, %p1), dimensions={1}, to_apply=%sum
}

%picked (p0.1: bf16[8,128], p1.1: s32[8]) -> bf16[8] {
  %p0.1 = bf16[8,128]{1,0} parameter(0)
  %p1.1 = s32[8]{0} parameter(1)
  ROOT %gather = bf16[8]{0} gather(%p0.1, %p1.1), slice_sizes={1,1}
}

%selected (p0.2: bf16[8,128], p1.2: s32[8]) -> bf16[8] {
  %p0.2 = bf16[8,128]{1,0} parameter(0)
  %p1.2 = s32[8]{0} parameter(1)
  %zero.2 = bf16[] constant(0)
  %zeros = bf16[8,128]{1,0} broadcast(%zero.2), dimensions={}
  %most = bf16[8,128]{1,0} maximum(%p0.2, %zeros)
  ROOT %gather.2 = bf16[8]{0} gather(%most, %p1.2), slice_sizes={1,1}
}

%body (state: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %state = (s32[], bf16[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[8,128]{1,0} get-tuple-element(%state), index=1
  %y = bf16[8,128]{1,0} negate(%x)
  ROOT %next = (s32[], bf16[8,128]{1,0}) tuple(%i, %y)
}

%condition (state.1: (s32[], bf16[8,128])) -> pred[] {
  %state.1 = (s32[], bf16[8,128]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (z: bf16[8,128], y: s32[8]) -> f32[8] {
  %z = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="f(z)"}
  %labels = s32[8]{0} parameter(1)
  %zero = f32[8]{0:T(1024)S(1)} constant({...})
BODY
  ROOT %last = f32[8]{0} fusion(%z, %zero), kind=kLoop, calls=%fused
}
"""


def found(*lines, size=8 * 128):
    return passes.passes(FUSED.replace("BODY", "\n".join(f"  {line}" for line in lines)), size)


def test_fusion_reads_its_operand_once():
    assert found() == passes.Passes({"0": 1.0}, 0.0, ())


def test_intermediate_array_is_a_write_and_a_read():
    lines = ("%w = f32[8,128]{1,0} convert(%z)", "%v = f32[8]{0} fusion(%w, %zero), kind=kLoop, calls=%fused")
    assert found(*lines) == passes.Passes({"0": 2.0, "made": 1.0}, 1.0, ("f32",))


@pytest.mark.parametrize("shape", ["f32[1024]{0}", "f32[4,2,128]{2,1,0}"])
def test_array_of_another_shape_with_as_many_elements_counts(shape):
    assert found(f"%w = {shape} convert(%z)").made == ("f32",)


def test_aliases_are_free_and_count_as_the_aliased_array():
    lines = (
        "%t = (s32[8]{0}, bf16[8,128]{1,0}) tuple(%labels, %z)",
        "%g = bf16[8,128]{1,0} get-tuple-element(%t), index=1",
        "%b = bf16[1024]{0} bitcast(%g)",
        "%v = f32[8]{0} fusion(%b, %zero), kind=kLoop, calls=%fused",
    )
    assert found(*lines) == passes.Passes({"0": 2.0}, 0.0, ())


def test_a_few_elements_are_no_pass():
    assert found("%v = bf16[8]{0} fusion(%z, %labels), kind=kLoop, calls=%picked").reads == {"0": 1.0}
    assert found("%v = bf16[8]{0} fusion(%z, %labels), kind=kLoop, calls=%selected").reads == {"0": 1.0}
    assert found("%v = bf16[8]{0} gather(%z, %labels), slice_sizes={1,1}").reads == {"0": 1.0}


def test_array_in_on_chip_memory_is_no_write_but_is_listed():
    lines = ("%w = f32[8,128]{1,0:T(8,128)S(1)} convert(%z)",)
    assert found(*lines) == passes.Passes({"0": 2.0}, 0.0, ("f32",))


def test_asynchronous_copy_counts_once():
    lines = (
        "%s = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[]) copy-start(%z)",
        "%d = bf16[8,128]{1,0} copy-done(%s)",
    )
    assert found(*lines) == passes.Passes({"0": 2.0}, 1.0, ("bf16",))


@pytest.mark.parametrize(
    ("says", "times"), [(', backend_config={"known_trip_count":{"n":"5"}}', 5.0), ("", float("inf"))]
)
def test_passes_in_a_loop_count_once_per_iteration(says, times):
    lines = (
        "%i0 = s32[] constant(0)",
        "%t = (s32[], bf16[8,128]{1,0}) tuple(%i0, %z)",
        f"%w = (s32[], bf16[8,128]{{1,0}}) while(%t), condition=%condition, body=%body{says}",
    )
    assert found(*lines) == passes.Passes({"0": 1.0, "made": times}, times, ("bf16",))


def test_largest_array_ignores_parameters_and_the_inside_of_fusions():
    text = FUSED.replace("BODY", "  %w = f32[8,64]{1,0} slice(%z), slice={[0:8],[0:64]}")
    assert passes.largest(text) == 512


def test_pairs_of_narrow_numbers_count_as_two_numbers():
    lines = (
        "%b = u32[8,64]{1,0} bitcast(%z)",
        "%w = u32[8,64]{1,0} negate(%b)",
        "%v = f32[8]{0} fusion(%w, %zero), kind=kLoop, calls=%fused",
        "%small = u32[8,32]{1,0} slice(%b), slice={[0:8],[0:32]}",
    )
    text = FUSED.replace("BODY", "\n".join(f"  {line}" for line in lines))
    assert passes.passes(text, 1024, "bf16").made == ("bf16",)
    assert passes.passes(text, 1024, "bf16").reads["made"] == 1
    assert passes.passes(text, 1024).made == ()


def test_multiplied_returns_the_dtypes_of_matmul_operands():
    text = FUSED.replace("BODY", "  %d = f32[8,8]{1,0} dot(%z, %z), lhs_contracting_dims={1}, rhs_contracting_dims={1}")
    assert passes.multiplied(text) == ["bf16"]
    assert passes.multiplied(FUSED.replace("BODY", "")) == []
