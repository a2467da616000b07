"""The cases of the self-test: every op, on small arguments of odd sizes that reach every kernel of its."""

from vleff.self_test.case import Case
from vleff.self_test.cases import attention, copying, linears, sparse, trimming


def all_cases() -> list[Case]:
    """All cases, op by op."""
    return [case for module in (attention, linears, sparse, trimming, copying) for case in module.cases()]
