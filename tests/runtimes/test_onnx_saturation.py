from __future__ import annotations

import pytest
from edgelm_runtimes.adapters.onnx_session import int8_saturates


@pytest.mark.parametrize(
    ("isa", "saturates"),
    [
        (("avx2", "fma"), True),
        (("avx2", "avx512f"), True),
        (("avx2", "avx_vnni"), False),
        (("avx2", "avx512f", "avx512_vnni"), False),
        (("neon", "dotprod"), False),
    ],
)
def test_x86_without_vnni_takes_the_kernels_that_do_not_saturate(isa: tuple[str, ...], saturates: bool) -> None:
    assert int8_saturates(isa) is saturates
