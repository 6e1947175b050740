"""Products with weights that stand in memory as float16."""
import pytest
import torch

from workshop import half_products

pytestmark = pytest.mark.skipif(not half_products.available(), reason="needs FBGEMM's product")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_weights_of_sixteen_bits_lose_nothing(dtype, rows):
    """Catches a product that rounds the rows or the sums to 16 bits, a bias that is lost, and
    columns that do not fill a register."""
    torch.manual_seed(0)
    weight = torch.randn(643, 341).to(dtype).float() * 2.0 ** -6
    bias = torch.randn(643)
    assert half_products.fits(weight)
    x = torch.randn(2, rows, 341)
    exact = x.double() @ weight.double().T + bias.double()
    y = half_products.HalfProduct(weight, bias)(x)
    assert y.dtype == torch.float32 and y.shape == exact.shape
    assert (y - exact).norm() < 1e-6 * exact.norm()


def test_other_weights_do_not_fit():
    """Catches weights that are rounded silently, of more than 16 bits or beyond float16's range; and
    a product where a plain one is as fast."""
    weight = torch.randn(600, 300).half().float()
    assert half_products.fits(weight)
    assert not half_products.fits(weight + 1e-5)
    assert not half_products.fits(weight * 1e5)
    assert half_products.fits(weight.bfloat16())
    assert not half_products.fits(weight[:20])
