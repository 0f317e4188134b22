"""What the prior says of cards, by hand."""

import math

import numpy as np
import pytest

from wattkeeper.energy.prior import Prior


def test_the_deviation_of_a_card_multiplies_its_terms_and_those_of_no_other_card():
    found = Prior(theta=(0.2, -0.1), gpu_deviation={"fast": (0.5, 0.0)}, used=(2, 0))
    terms = np.array([[1.0, 9.0, 2.0], [1.0, 9.0, 2.0]])
    fast, other = found.log_value(terms, ["fast", "other"])
    assert fast == pytest.approx(math.log(2.0 * math.exp(0.7) + math.exp(-0.1)))
    assert other == pytest.approx(math.log(2.0 * math.exp(0.2) + math.exp(-0.1)))
