"""Products with weights that stand in memory as float16."""
import warnings

import pytest
import torch

from workshop import half_products

pytestmark = pytest.mark.skipif(not half_products.available(), reason="needs FBGEMM's product")


@pytest.mark.parametrize("large", [0, 2**30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_weights_of_sixteen_bits_lose_nothing(large, dtype, rows, monkeypatch):
    """Catches a product that rounds the rows or the sums to 16 bits, a bias that is lost, columns
    that do not fill a register, rows that are no piece of memory; in both ways to the product."""
    monkeypatch.setattr(half_products, "LARGE", large)
    torch.manual_seed(0)
    weight = torch.randn(643, 341).to(dtype).float() * 2.0 ** -6
    bias = torch.randn(643)
    assert half_products.fits(weight)
    x = torch.randn(2, 341, rows).transpose(1, 2)
    exact = x.double() @ weight.double().T
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = half_products.HalfProduct(weight, bias)(x)
        without_bias = half_products.HalfProduct(weight)(x)
    assert y.dtype == torch.float32 and y.shape == exact.shape
    assert (y - bias - exact).norm() < 1e-6 * exact.norm()
    assert (without_bias - exact).norm() < 1e-6 * exact.norm()


def test_other_weights_do_not_fit():
    """Catches weights that are rounded silently, of more than 16 bits or beyond float16's range."""
    weight = torch.randn(60, 30).half().float()
    assert half_products.fits(weight) and half_products.fits(weight.bfloat16())
    assert not half_products.fits(weight + 1e-5)
    assert not half_products.fits(weight * 1e5)
