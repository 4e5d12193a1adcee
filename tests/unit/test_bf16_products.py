"""benchmarks/bf16_products.py: the products are PyTorch's."""

from __future__ import annotations

import pytest
import torch

from benchmarks.bf16_products import product_kernel


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(7, 33), (3, 5, 16)])
def test_bf16_product_is_the_fp32_product_rounded(shape: tuple[int, ...], transposed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(*shape, generator=generator).bfloat16()
    right = torch.randn(*shape[:-2], 9, shape[-1], generator=generator).bfloat16().transpose(-1, -2)
    right = right if transposed else right.contiguous()
    multiply = product_kernel(torch.ops.aten.mm.out if left.dim() == 2 else torch.ops.aten.bmm.out)

    product = multiply(left, right)

    assert product.dtype == torch.bfloat16
    # A half in the last place for the order in which fp32 adds up, of numbers near a tie.
    torch.testing.assert_close(product.float(), (left.float() @ right.float()), rtol=2**-8, atol=1e-6)


def test_other_types_are_left_to_pytorch() -> None:
    left, right = torch.randn(4, 6), torch.randn(6, 3)
    assert torch.equal(product_kernel(torch.ops.aten.mm.out)(left, right), left @ right)


def test_ties_go_to_even() -> None:
    # 1 + 2**-8 lies between 1 and 1 + 2**-7, bf16's next; 1 + 3 * 2**-8 between that and 1 + 2**-6.
    left = torch.tensor([[1.0, 2**-8], [1.0, 3 * 2**-8]]).bfloat16()
    product = product_kernel(torch.ops.aten.mm.out)(left, torch.ones(2, 1).bfloat16())
    assert product.flatten().tolist() == [1.0, 1 + 2**-6]
