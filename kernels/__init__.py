"""GPU kernels in Triton, one file an operation; installed as `mpamatch.kernels`."""
