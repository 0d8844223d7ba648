// Labels as rows: a thread makes one element.

// y[n k] = 1 where labels[n] is k, else 0
extern "C" __global__ void one_hot(const LABEL* __restrict__ labels, OUT* __restrict__ y, int n, int classes, int step) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n * classes) y[i] = labels[i / classes * step] == i % classes;
}
