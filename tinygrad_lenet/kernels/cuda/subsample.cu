// Subsampling, in which windows lie side by side: a thread makes one pixel of the output.

struct Sizes {
  int n, c, h, w;             // images
  int oh, ow, kh, kw;         // window positions and window
  int xn, xc, xh, xw;         // steps of the images in memory, in elements (not used if they are the output)
  int gn, gc, gh, gw;         // steps of gy
  int step_weight, step_bias;
};

// The sum of x over the window of output pixel i.
__device__ Real window_sum(const Real* x, int i, const Sizes& s) {
  const Real* from = x + i / (s.oh * s.ow) % s.c * s.xc + i / (s.c * s.oh * s.ow) * s.xn;
  from += i / s.ow % s.oh * s.kh * s.xh + i % s.ow * s.kw * s.xw;
  Real sum = 0;
  for (int row = 0; row < s.kh; row++)
    for (int column = 0; column < s.kw; column++) sum += from[row * s.xh + column * s.xw];
  return sum;
}

// y[n c oh ow] = weight[c] sum of x over the window + bias[c]
extern "C" __global__ void subsample2d(const Real* __restrict__ x, const Real* __restrict__ weight,
                                       const Real* __restrict__ bias, Real* __restrict__ y, const Sizes s) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, c = i / (s.oh * s.ow) % s.c;
  if (i >= s.n * s.c * s.oh * s.ow) return;
  y[i] = window_sum(x, i, s) * weight[c * s.step_weight] + (bias ? bias[c * s.step_bias] : Real(0));
}

// y[n c oh ow] = gy[n c oh ow] sum of x over the window: what the gradient for the weight adds up
extern "C" __global__ void weight_terms(const Real* __restrict__ x, const Real* __restrict__ gy, Real* __restrict__ y,
                                        const Sizes s) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= s.n * s.c * s.oh * s.ow) return;
  const Real* from = gy + i / (s.oh * s.ow) % s.c * s.gc + i / (s.c * s.oh * s.ow) * s.gn;
  y[i] = from[i / s.ow % s.oh * s.gh + i % s.ow * s.gw] * window_sum(x, i, s);
}

// gx[n c h w] = weight[c] gy at the window of this pixel, 0 if it has none
extern "C" __global__ void subsample2d_transpose(const Real* __restrict__ gy, const Real* __restrict__ weight,
                                                 Real* __restrict__ gx, const Sizes s) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, c = i / (s.h * s.w) % s.c;
  if (i >= s.n * s.c * s.h * s.w) return;
  const int oh = i / s.w % s.h / s.kh, ow = i % s.w / s.kw;
  const Real* from = gy + c * s.gc + i / (s.c * s.h * s.w) * s.gn;
  gx[i] = oh < s.oh && ow < s.ow ? weight[c * s.step_weight] * from[oh * s.gh + ow * s.gw] : Real(0);
}
