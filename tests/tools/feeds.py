"""Feeds that are not installed everywhere."""

import pytest

from mpamatch.data.feeds import INSTALL_DALI, dali_installed

NEEDS_DALI = pytest.mark.skipif(not dali_installed(), reason=f"DALI is not installed ({INSTALL_DALI})")
FEEDS = ("torchvision", pytest.param("dali", marks=NEEDS_DALI))
