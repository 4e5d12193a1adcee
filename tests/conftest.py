"""What several tests need: the material beside the checkout, and a cache of the tests' own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A loaded machine is slow, not wrong.
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")

# A process of these joins Rays and starts them; Ray settles for good, when it is first asked, whether it shows a token.
os.environ.setdefault("RAY_AUTH_MODE", "token")

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests and the tests out of it; programs they start inherit the variable.

    All processes of pytest-xdist share it: what one has forecast, no other does again.
    """
    before = os.environ.get("SHOAL_CACHE")
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["SHOAL_CACHE"] = str(folder)
    yield
    if before is None:
        del os.environ["SHOAL_CACHE"]
    else:
        os.environ["SHOAL_CACHE"] = before


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
