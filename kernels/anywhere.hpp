// Marks functions that a GPU runs as well as a CPU.
#pragma once

#if defined(__CUDACC__)
#define QCHECK_ANYWHERE __host__ __device__
#else
#define QCHECK_ANYWHERE
#endif
