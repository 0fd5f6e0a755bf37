from __future__ import annotations

from pathlib import Path

import pytest
from cohort_files import Sources, make_sources


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """A small cohort of six cases with patches and genes, as files of other tools."""
    return make_sources(tmp_path)
