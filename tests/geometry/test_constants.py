import pytest
import torch

from pmsplat.geometry import constants


def test_numbers_take_dtype_and_device_of_what_they_meet() -> None:
    found = constants.constant((3, 2.5), torch.zeros(1, dtype=torch.float64))
    assert found.dtype == torch.float64 and found.tolist() == [3.0, 2.5]
    found = constants.constant(((1, 0), (0, 1)), torch.zeros(1))
    assert torch.equal(found, torch.eye(2))


def test_a_device_is_sent_them_once() -> None:
    like = torch.zeros(1, device="meta")
    first, again = (constants.constant((1.0, 2.0), like) for _ in range(2))
    assert first is again
    assert constants.constant((1.0, 2.0), like.double()) is not first


def test_constants_first_made_under_inference_serve_gradients() -> None:
    constants._constant.cache_clear()
    like = torch.zeros(2, device="meta", requires_grad=True)
    with torch.inference_mode():
        made = constants.constant((1.0, 2.0), like)
    assert not made.is_inference()
    (like * constants.constant((1.0, 2.0), like)).sum().backward()


@pytest.mark.cuda
def test_a_known_constant_makes_nobody_wait() -> None:
    like = torch.zeros(1, device="cuda")
    constants.constant((5.0, 6.0), like)
    torch.cuda.set_sync_debug_mode("error")
    try:
        constants.constant((5.0, 6.0), like)
    finally:
        torch.cuda.set_sync_debug_mode("default")
