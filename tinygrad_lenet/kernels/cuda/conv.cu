// Convolution and transposed convolution of few channels, without matrices of columns.
//
// A thread makes one pixel of up to CHANNELS maps, so each pixel that it reads serves as many products. Neighbouring
// threads make neighbouring pixels of a row: they read the same weight, and pixels that lie side by side.

#define CHANNELS 8

struct Sizes {
  int n, c, h, w;              // the input's shape
  int f, oh, ow;               // the output's channels and extent
  int kh, kw;                  // the window
  int sh, sw, ph, pw, dh, dw;  // its stride, padding and dilation
  int xn, xc, xh, xw;          // steps of the input in memory, in elements
  int wo, wi, wh, ww;          // steps of the weight for an output channel, an input channel, a row and a column of it
  int step_bias;               // of the bias; only read if there is one
};

// y[n f oh ow] = bias[f] + sum over c, kh, kw of x[n, c, S oh + D kh - P, S ow + D kw - P] w[f c kh kw]
extern "C" __global__ void conv2d(const Real* __restrict__ x, const Real* __restrict__ weight,
                                  const Real* __restrict__ bias, Real* __restrict__ y, const Sizes s) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x, extent = s.oh * s.ow;
  if (p >= s.n * extent) return;
  const int n = p / extent, top = p % extent / s.ow * s.sh - s.ph, left = p % s.ow * s.sw - s.pw;
  const int first = blockIdx.y * CHANNELS, count = min(CHANNELS, s.f - first);
  Real sum[CHANNELS] = {};
  for (int c = 0; c < s.c; c++)
    for (int kh = 0; kh < s.kh; kh++) {
      const int row = top + kh * s.dh;
      for (int kw = 0; kw < s.kw; kw++) {
        const int column = left + kw * s.dw;
        const bool inside = row >= 0 && row < s.h && column >= 0 && column < s.w;
        const Real pixel = inside ? x[n * s.xn + c * s.xc + row * s.xh + column * s.xw] : Real(0);
        const Real* w = weight + first * s.wo + c * s.wi + kh * s.wh + kw * s.ww;
#pragma unroll
        for (int k = 0; k < CHANNELS; k++)
          if (k < count) sum[k] += pixel * w[k * s.wo];
      }
    }
#pragma unroll
  for (int k = 0; k < CHANNELS; k++)
    if (k < count) y[(n * s.f + first + k) * extent + p % extent] = sum[k] + (bias ? bias[(first + k) * s.step_bias] : Real(0));
}

// y[n f oh ow] = bias[f] + sum over c, kh, kw of x[n c h w] w[c f kh kw], for oh = S h + D kh - P and ow likewise.
// Where there is no such h or w nothing is added: a product with 0 would be NaN for a weight that is infinite.
extern "C" __global__ void conv_transpose2d(const Real* __restrict__ x, const Real* __restrict__ weight,
                                            const Real* __restrict__ bias, Real* __restrict__ y, const Sizes s) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x, extent = s.oh * s.ow;
  if (p >= s.n * extent) return;
  const int n = p / extent, bottom = p % extent / s.ow + s.ph, right = p % s.ow + s.pw;
  const int first = blockIdx.y * CHANNELS, count = min(CHANNELS, s.f - first);
  Real sum[CHANNELS] = {};
  for (int kh = 0; kh < s.kh; kh++) {
    const int row = (bottom - kh * s.dh) / s.sh;
    if (bottom < kh * s.dh || row * s.sh != bottom - kh * s.dh || row >= s.h) continue;
    for (int kw = 0; kw < s.kw; kw++) {
      const int column = (right - kw * s.dw) / s.sw;
      if (right < kw * s.dw || column * s.sw != right - kw * s.dw || column >= s.w) continue;
      for (int c = 0; c < s.c; c++) {
        const Real pixel = x[n * s.xn + c * s.xc + row * s.xh + column * s.xw];
        const Real* w = weight + first * s.wo + c * s.wi + kh * s.wh + kw * s.ww;
#pragma unroll
        for (int k = 0; k < CHANNELS; k++)
          if (k < count) sum[k] += pixel * w[k * s.wo];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < CHANNELS; k++)
    if (k < count) y[(n * s.f + first + k) * extent + p % extent] = sum[k] + (bias ? bias[(first + k) * s.step_bias] : Real(0));
}
