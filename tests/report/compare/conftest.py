"""The dense model that most runs here are of."""

import pytest

from tests import zoo


@pytest.fixture(scope="package")
def bert():
    return zoo.build("bert")
