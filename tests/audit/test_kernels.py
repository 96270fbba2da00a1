from wmtp.audit.kernels import ON_THE_CPU, kernels
from wmtp.audit.reviewed import REVIEWED


def test_the_list_has_what_is_known_of_mps() -> None:
    found = kernels()
    assert {found[name] for name in ("mm", "bmm", "_fused_adamw_", "add.Tensor")} == {"metal"}
    assert {found[name] for name in ("t", "expand", "zeros_like")} == {"composite"}
    assert {found[name] for name in ON_THE_CPU} == {"cpu"}
    assert found.keys().isdisjoint({"_fused_rms_norm_backward", "heaviside", "geqrf"})


def test_structured_operations_have_the_kernel_of_their_out_variant() -> None:
    assert kernels()["softmax.int_out"] == "composite"
    assert kernels()["_softmax"] == kernels()["_softmax.out"] == "metal"
    assert "fractional_max_pool2d_backward" not in kernels()  # its out variant has none for MPS


def test_nothing_is_reviewed_that_has_a_kernel_or_none_at_all() -> None:
    """A list that grows stale would let through what it was not read for."""
    assert {name: kernels().get(name) for name in REVIEWED} == dict.fromkeys(REVIEWED, "composite")
