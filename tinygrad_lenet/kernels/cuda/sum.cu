// Sums along axes, in double precision and always in the same order.
//
// A block of 256 threads adds one part of one sum. Long sums have several parts, which `add_parts` adds.

struct Sizes {
  int kept[4], kept_steps[4];    // the axes that stay, and those that are summed over, from the outermost on: sizes
  int gone[4], gone_steps[4];    // and steps of x in memory, in elements; unused ones have size 1
  int outputs, count, part;      // the sizes' products; a part has this many elements
};

__device__ int place(int i, const int* sizes, const int* steps) {
  int at = 0;
  for (int axis = 3; axis >= 0; axis--) {
    at += i % sizes[axis] * steps[axis];
    i /= sizes[axis];
  }
  return at;
}

// y[part output] = the sum of a part of x, divided
extern "C" __global__ void sum(const Real* __restrict__ x, OUT* __restrict__ y, double divisor, const Sizes s) {
  __shared__ double sums[256];
  const int end = min(s.count, (int)(blockIdx.y + 1) * s.part);
  const Real* from = x + place(blockIdx.x, s.kept, s.kept_steps);
  double added = 0;
  for (int i = blockIdx.y * s.part + threadIdx.x; i < end; i += 256) added += from[place(i, s.gone, s.gone_steps)];
  sums[threadIdx.x] = added;
  for (unsigned half = 128; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (!threadIdx.x) y[blockIdx.y * s.outputs + blockIdx.x] = sums[0] / divisor;
}

// y[output] = the sum over parts of x[part output], divided
extern "C" __global__ void add_parts(const Real* __restrict__ x, OUT* __restrict__ y, double divisor, int parts,
                                     int outputs) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= outputs) return;
  double added = 0;
  for (int part = 0; part < parts; part++) added += x[part * outputs + i];
  y[i] = added / divisor;
}
