// Running a job for many items: on the device under nvcc; else in this process, by a few threads,
// so that the device's code can be tested where there is none.
#pragma once
#include "grid.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "pool.h"
#endif

namespace vox {

#ifdef __CUDA_ARCH__
VOX_BOTH int64_t add(int64_t* to, int64_t value) {
  return int64_t(atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value)));
}
VOX_BOTH void set_bits(uint64_t* to, uint64_t bits) {
  atomicOr(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(bits));
}
VOX_BOTH void lower(int64_t* to, int64_t value) { atomicMin(reinterpret_cast<long long*>(to), value); }
VOX_BOTH void raise(int64_t* to, int64_t value) { atomicMax(reinterpret_cast<long long*>(to), value); }
// What was there; it is replaced if it was `expected`.
VOX_BOTH int64_t exchange_if(int64_t* at, int64_t expected, int64_t value) {
  return int64_t(atomicCAS(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(expected),
                           static_cast<unsigned long long>(value)));
}
template <class T>
VOX_BOTH T fresh(const T* from) {  // past caches that others' stores do not reach
  return *static_cast<const volatile T*>(from);
}
// Add one; the threads of a warp that add to the same number at once do so by one of them.
VOX_BOTH void count(int64_t* to) {
  const unsigned same = __match_any_sync(__activemask(), reinterpret_cast<unsigned long long>(to));
  if ((threadIdx.x & 31) == unsigned(__ffs(int(same)) - 1)) add(to, __popc(same));
}
#else
VOX_BOTH int64_t add(int64_t* to, int64_t value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }
VOX_BOTH void set_bits(uint64_t* to, uint64_t bits) { __atomic_fetch_or(to, bits, __ATOMIC_RELAXED); }
template <class T>
VOX_BOTH T fresh(const T* from) {
  return __atomic_load_n(from, __ATOMIC_RELAXED);
}
VOX_BOTH int64_t exchange_if(int64_t* at, int64_t expected, int64_t value) {
  __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
VOX_BOTH void lower(int64_t* to, int64_t value) {
  for (int64_t seen = fresh(to); value < seen;) {
    const int64_t was = exchange_if(to, seen, value);
    if (was == seen) return;
    seen = was;
  }
}
VOX_BOTH void raise(int64_t* to, int64_t value) {
  for (int64_t seen = fresh(to); value > seen;) {
    const int64_t was = exchange_if(to, seen, value);
    if (was == seen) return;
    seen = was;
  }
}
VOX_BOTH void count(int64_t* to) { add(to, 1); }
#endif

// The number of items: known here, or `per` times a number that only the device knows.
struct Items {
  int64_t most;
  const int64_t* known = nullptr;
  int64_t per = 1;

  VOX_BOTH int64_t number() const {
    if (!known) return most;
    const int64_t items = fresh(known) * per;
    return items < most ? items : most;
  }
};

#ifdef __CUDACC__
template <class Job>
__global__ void run_job(Job job, Items items) {
  const int64_t count = items.number(), step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) job(i);
}

// Call job(i) for all items, on a stream. Nothing waits. Returns false where the launch failed.
template <class Job>
bool each(int64_t stream, Items items, const Job& job) {
  constexpr int64_t kThreads = 128, kMostBlocks = 132 * 16;  // enough to fill the largest devices
  if (items.most <= 0) return true;
  const int64_t blocks = (items.most + kThreads - 1) / kThreads;
  run_job<<<unsigned(blocks < kMostBlocks ? blocks : kMostBlocks), unsigned(kThreads), 0,
            reinterpret_cast<cudaStream_t>(stream)>>>(job, items);
  return cudaPeekAtLastError() == cudaSuccess;
}
#else
template <class Job>
bool each(int64_t threads, Items items, const Job& job) {
  parallel(int(threads), items.number(), 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) job(i);
  });
  return true;
}
#endif

}  // namespace vox
