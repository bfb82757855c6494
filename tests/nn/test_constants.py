"""Constants are made once, work in every mode, and live as long as somebody holds them."""

import torch
from torch import Tensor

from pmsplat.nn import constants


def counted() -> tuple[list[int], constants.Callable[..., Tensor]]:
    made: list[int] = []

    @constants.constant
    def ramp(length: int) -> Tensor:
        made.append(length)
        return torch.arange(float(length))

    return made, ramp


def test_a_constant_is_made_once() -> None:
    made, ramp = counted()
    assert ramp(3) is ramp(3) and torch.equal(ramp(2), torch.tensor([0.0, 1.0]))
    assert made == [3, 2]


def test_one_made_in_inference_mode_works_with_gradients() -> None:
    _, ramp = counted()
    with torch.inference_mode():
        ramp(3)
    weight = torch.ones(3, requires_grad=True)
    (weight * ramp(3)).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.tensor([0.0, 1.0, 2.0]))


def test_the_last_ones_are_kept_and_held_ones_too() -> None:
    made, ramp = counted()
    with constants.hold_constants() as held:
        first = ramp(1)
        with constants.hold_constants() as inner:
            ramp(2)
    for length in range(3, 3 + constants.KEPT):
        ramp(length)
    assert ramp(1) is not first and made.count(1) == 2  # forgotten, and made anew
    assert held[0] is first and len(held) == 1 and len(inner) == 1
