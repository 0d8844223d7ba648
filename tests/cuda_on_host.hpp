// CUDA C for a C++ compiler: what the kernels of tinygrad_lenet/kernels/cuda use, run on the CPU.
//
// Blocks run one after the other, and so do the threads of a block. Where a kernel has barriers, each thread has a stack
// of its own and runs to its next barrier; then it is the next thread's turn. Backwards, threads run from the last to the
// first: results that differ show that one thread read what another had not written yet.
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#define __global__
#define __device__ static inline
#define __shared__ static  // there is one block at a time
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

template <class A, class B>
static inline auto min(A a, B b) { return b < a ? b : a; }
static inline int max(int a, int b) { return a < b ? b : a; }
static inline float max(float a, float b) { return fmaxf(a, b); }  // a NaN loses, as in CUDA
static inline double max(double a, double b) { return fmax(a, b); }
using std::exp;
using std::log;
using std::sqrt;
using std::tanh;

static void (*thread_body)(void**);
static void** arguments;
static std::vector<ucontext_t> threads;
static std::vector<bool> ended;
static ucontext_t scheduler;
static unsigned current;

static inline void __syncthreads() { swapcontext(&threads[current], &scheduler); }

static void begin() {
  thread_body(arguments);
  ended[current] = true;
  swapcontext(&threads[current], &scheduler);
}

static void run_block(bool barriers, bool backwards) {
  static std::vector<std::vector<char>> stacks;
  const unsigned count = blockDim.x;
  auto each = [&](auto act) {
    for (unsigned i = 0; i < count; i++) {
      threadIdx.x = current = backwards ? count - 1 - i : i;
      act();
    }
  };
  if (!barriers) return each([] { thread_body(arguments); });
  threads.resize(count);
  ended.assign(count, false);
  while (stacks.size() < count) stacks.emplace_back(16384);
  each([] {
    getcontext(&threads[current]);
    threads[current].uc_stack.ss_sp = stacks[current].data();
    threads[current].uc_stack.ss_size = stacks[current].size();
    makecontext(&threads[current], begin, 0);
  });
  for (bool any = true; any;) {
    any = false;
    each([&] {
      if (ended[current]) return;
      swapcontext(&scheduler, &threads[current]);
      any |= !ended[current];
    });
  }
}

template <class... P, size_t... I>
static inline void call(void (*kernel)(P...), void** values, std::index_sequence<I...>) {
  kernel(*(std::remove_const_t<P>*)values[I]...);
}

// run_NAME launches a kernel; each of `values` points to an argument.
#define LAUNCHER(name, barriers)                                                                                  \
  template <class... P>                                                                                           \
  static inline void call_##name(void (*kernel)(P...), void** values) {                                           \
    call(kernel, values, std::index_sequence_for<P...>());                                                        \
  }                                                                                                               \
  extern "C" void run_##name(const unsigned* grid, unsigned block, void** values, bool backwards) {               \
    thread_body = [](void** all) { call_##name(name, all); };                                                     \
    arguments = values;                                                                                           \
    gridDim = {grid[0], grid[1], grid[2]};                                                                        \
    blockDim = {block, 1, 1};                                                                                     \
    for (unsigned z = 0; z < grid[2]; z++)                                                                        \
      for (unsigned y = 0; y < grid[1]; y++)                                                                      \
        for (unsigned x = 0; x < grid[0]; x++) blockIdx = {x, y, z}, run_block(barriers, backwards);              \
  }
