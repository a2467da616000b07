import pytest
import torch

from vleff.ops.debug import checks_values, debug_checks
from vleff.ops.token_gather_attention import _check_values


def test_context_ends_with_the_block_and_nests() -> None:
    assert not checks_values()
    with debug_checks():
        with debug_checks():
            assert checks_values()
        assert checks_values()
    assert not checks_values()
    with pytest.raises(KeyError), debug_checks():
        raise KeyError
    assert not checks_values()


@pytest.mark.parametrize(
    ("index", "offsets", "message"),
    [
        ([0, 1, 7], [0, 1, 3], "argument 'q_index': expected row numbers in"),
        ([0, 1, 2], [0, 2, 1], "argument 'q_offsets': expected offsets that never descend"),
    ],
)
def test_values_are_checked_as_on_the_cpu(index: list[int], offsets: list[int], message: str) -> None:
    x, k_offsets = torch.zeros(5, 2, 64), torch.tensor([0, 2, 5], dtype=torch.int32)
    arguments = (torch.tensor(offsets, dtype=torch.int32), k_offsets, 5, 5, torch.tensor(index))
    with pytest.raises(RuntimeError, match=message):
        _check_values(x, x, *arguments, None, None, None)
