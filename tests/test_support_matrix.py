"""docs/support.md says what the tests say."""

import support_matrix


def test_the_page_is_up_to_date_and_every_family_is_on_it():
    tests = support_matrix.collected()
    assert support_matrix.PAGE.read_text(encoding="utf-8") == support_matrix.page(tests), (
        "run python tests/support_matrix.py"
    )
    for prefixes, files in support_matrix.FAMILIES.values():
        own = [test for test in tests if support_matrix.is_of_family(test, prefixes, files)]
        for column in (
            "fp32",
            "bf16",
            "autocast",
            "gradients",
            "copied, pickled, saved",
            "torch.compile",
            "torch.export",
        ):
            assert any(word in test for test in own for word in support_matrix.COLUMNS[column]), (prefixes, column)
