"""Shared by all tests."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

# As the command does, before NumPy is loaded: free atoms take minutes, not seconds, where OpenBLAS has two threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Before gemmi and scipy, which any test module may import: in the other order cctbx crashes the process.
with suppress(ImportError):
    import cctbx.miller  # noqa: F401


# A shell's background job ignores Ctrl-C, and so would every program the tests begin and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the measured data, which are not part of the repository."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the measured data (../shared/data) are not here")
    return folder
