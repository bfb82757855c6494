"""Constants are made once, work in every mode, and live as long as somebody holds them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pmsplat.geometry import constants
from tests.waits import no_waits


def counted() -> tuple[list[int], Callable[[int], Tensor]]:
    made: list[int] = []

    @constants.keep_results
    def ramp(length: int) -> Tensor:
        made.append(length)
        return torch.arange(float(length))

    return made, ramp


def test_a_result_is_made_once() -> None:
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


def test_numbers_take_dtype_and_device_of_what_they_meet() -> None:
    found = constants.constant((3, 2.5), torch.zeros(1, dtype=torch.float64))
    assert found.dtype == torch.float64 and found.tolist() == [3.0, 2.5]
    found = constants.constant(((1, 0), (0, 1)), torch.zeros(1))
    assert torch.equal(found, torch.eye(2))


def test_a_device_is_sent_numbers_once() -> None:
    like = torch.zeros(1, device="meta")
    first, again = (constants.constant((1.0, 2.0), like) for _ in range(2))
    assert first is again
    assert constants.constant((1.0, 2.0), like.double()) is not first


def test_whoever_holds_constants_holds_numbers_of_a_device_too() -> None:
    """Those that were sent before as well: a graph that is captured reads them all the same."""
    like = torch.zeros(1, device="meta")
    known = constants.constant((7.0, 8.0), like)
    with constants.hold_constants() as held:
        constants.constant((7.0, 8.0), like)
        fresh = constants.constant((8.0, 7.0), like)
    assert held[0] is known and held[1] is fresh and len(held) == 2


def test_numbers_first_sent_under_inference_serve_gradients() -> None:
    like = torch.zeros(2, device="meta", requires_grad=True)
    with torch.inference_mode():
        made = constants.constant((9.0, 2.0), like)
    assert not made.is_inference()
    (like * constants.constant((9.0, 2.0), like)).sum().backward()


@pytest.mark.cuda
def test_a_known_constant_makes_nobody_wait() -> None:
    like = torch.zeros(1, device="cuda")
    constants.constant((5.0, 6.0), like)
    with no_waits():
        constants.constant((5.0, 6.0), like)
