"""GNU Radio blocks, and in `waveforms` what they compute. Importing this limits BLAS to one thread in this process."""

import scipy.linalg  # noqa: F401  (its BLAS can be limited only once it is loaded)
import threadpoolctl

# The bits of a product depend on how many threads share it, and a replay has to decide as the run did, whatever
# programs the two are. In a flowgraph every block has its thread already.
threadpoolctl.threadpool_limits(1, user_api="blas")
