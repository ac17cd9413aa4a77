"""One thread of BLAS, as in the programs: the matrices of tests are small."""

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    with threadpool_limits(limits=1, user_api="blas"):
        yield
