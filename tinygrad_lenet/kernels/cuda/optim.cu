// The passes of an optimiser's step, over all parameters at once.

#define ARRAYS 64

struct Table {
  long long address[ARRAYS];  // of arrays that lie anywhere
  int start[ARRAYS + 1];      // where each begins in the vector; those that are not used begin at the end
};

// The element of the arrays that belongs to element i of the vector.
__device__ Real* element(const Table& table, int i) {
  int k = 0;
  for (int half = ARRAYS / 2; half; half /= 2)
    if (table.start[k + half] <= i) k += half;
  return (Real*)table.address[k] + (i - table.start[k]);
}

// vector = the arrays, one after the other
extern "C" __global__ void gather(const Table table, Real* __restrict__ vector, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) vector[i] = *element(table, i);
}

// the arrays -= vector
extern "C" __global__ void subtract(const Table table, const Real* __restrict__ vector, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) *element(table, i) -= vector[i];
}

// m = b1 m + g, v = b2 v + g^2, change = rate m / (sqrt(v) + eps)
// In a graph eps and rate lie on the device, where they can change from launch to launch; else the addresses are 0.
extern "C" __global__ void adam(const Real* __restrict__ gradient, Real* __restrict__ change, Real* __restrict__ m,
                                Real* __restrict__ v, int n, double b1, double b2, double eps, double rate,
                                const Real* eps_at, const Real* rate_at) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const Real g = gradient[i];
  m[i] = m[i] * Real(b1) + g;
  v[i] = v[i] * Real(b2) + g * g;
  change[i] = m[i] / (sqrt(v[i]) + (eps_at ? *eps_at : Real(eps))) * (rate_at ? *rate_at : Real(rate));
}

// The first n of a vector = a, b, c, d
extern "C" __global__ void set_numbers(Real* __restrict__ vector, int n, double a, double b, double c, double d) {
  const int i = threadIdx.x;
  if (i < n) vector[i] = Real(i == 0 ? a : i == 1 ? b : i == 2 ? c : d);
}
