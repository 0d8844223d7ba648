// Softmax cross-entropy and its gradient: a thread makes one row, since there are few classes.
//
// Targets are numbers[n k] or, if LABEL is defined, labels[n] of that type. As an index does, one out of range wraps.

struct Sizes {
  int n, k;             // images and classes
  int xn, xk, tn, tk;   // steps of logits and target in memory, in elements
  int step_g;           // of gy
};

// What softmax(logits)_k = exp(logits_k - largest) / sum needs; a NaN among the logits makes the sum one.
__device__ Real largest_and_sum(const Real* x, const Sizes& s, Real& sum) {
  Real largest = x[0];
  for (int k = 1; k < s.k; k++) largest = max(largest, x[k * s.xk]);
  sum = 0;
  for (int k = 0; k < s.k; k++) sum += exp(x[k * s.xk] - largest);
  return largest;
}

#ifdef LABEL
typedef LABEL Target;
__device__ Real target_of(const Target* labels, int n, int k, const Sizes& s) {
  return ((labels[n * s.tn] % s.k) + s.k) % s.k == k;
}
#else
typedef Real Target;
__device__ Real target_of(const Target* target, int n, int k, const Sizes& s) { return target[n * s.tn + k * s.tk]; }
#endif

// y[n] = - sum over k of target[n k] log softmax(logits)[n k]; a class with target 0 adds nothing
extern "C" __global__ void cross_entropy(const Real* __restrict__ logits, const Target* __restrict__ target,
                                         Real* __restrict__ y, const Sizes s) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= s.n) return;
  const Real* x = logits + n * s.xn;
  Real sum, loss = 0;
  const Real largest = largest_and_sum(x, s, sum), log_sum = log(sum);
  for (int k = 0; k < s.k; k++)
    if (target_of(target, n, k, s) != 0) loss += target_of(target, n, k, s) * (x[k * s.xk] - largest - log_sum);
  y[n] = -loss;
}

// gx[n k] = gy[n] (softmax(logits)[n k] sum over j of target[n j] - target[n k])
extern "C" __global__ void cross_entropy_grad(const Real* __restrict__ gy, const Real* __restrict__ logits,
                                              const Target* __restrict__ target, Real* __restrict__ gx, const Sizes s) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= s.n) return;
  const Real* x = logits + n * s.xn;
  Real sum, weight = 0;
  const Real largest = largest_and_sum(x, s, sum);
  for (int k = 0; k < s.k; k++) weight += target_of(target, n, k, s);
  for (int k = 0; k < s.k; k++)
    gx[n * s.k + k] = gy[n * s.step_g] * (exp(x[k * s.xk] - largest) / sum * weight - target_of(target, n, k, s));
}
