"""What several tests need: the material beside the checkout, and a cache of the tests' own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# A loaded machine is slow, not wrong.
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The repository's root."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `../shared` with real data and small models; a test that needs it is skipped where it is absent."""
    folder = CHECKOUT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the real data and models of ../shared, which is not there")
    return folder
