// Element by element: what would take several passes over memory.

// gx = gy S (A - y^2 / A), the gradient of A tanh(S x), but 0 where gy is 0 and y is NaN
extern "C" __global__ void tanh_grad(const Real* __restrict__ gy, const Real* __restrict__ y, Real* __restrict__ gx,
                                     int n, double amplitude, double slope) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const Real a = slope * amplitude, b = slope / amplitude, value = gy[i] == 0 && y[i] != y[i] ? Real(0) : y[i];
  gx[i] = gy[i] * (a - b * (value * value));
}

// y = A tanh(S x)
extern "C" __global__ void scaled_tanh(const Real* __restrict__ x, Real* __restrict__ y, int n, double amplitude,
                                       double slope) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = Real(amplitude) * tanh(Real(slope) * x[i]);
}
