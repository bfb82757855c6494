"""What a data loader's worker makes of an error is one sentence again."""

import pickle

import pytest
from torch._utils import ExceptionWrapper

from pmsplat.data import DamagedPointmaps, MissingPointmaps, StalePointmaps
from pmsplat.errors import UserError


@pytest.mark.parametrize("kind", [UserError, DamagedPointmaps, MissingPointmaps, StalePointmaps])
def test_an_error_of_a_worker_reads_as_where_it_was_raised(kind: type[UserError]) -> None:
    original = kind("3 of it: broken", "4", "mend it")
    try:
        raise original
    except UserError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(kind) as caught:
        wrapped.reraise()
    assert str(caught.value) == str(original) == "3 of it: broken; wanted 4; mend it"
    assert str(pickle.loads(pickle.dumps(original))) == str(original)
