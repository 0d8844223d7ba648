// Pooling and its gradients: a thread makes one pixel of the output.

struct Sizes {
  int n, c, h, w;           // images
  int oh, ow;               // window positions
  int kh, kw, sh, sw, ph, pw;
  int xn, xc, xh, xw;       // steps of the images in memory, in elements (not used if they are the output)
  int gn, gc, gh, gw;       // steps of gy
};

struct Range {
  int first, last;
};

// The windows that a pixel lies under, along one axis.
__device__ Range windows_on(int pixel, int positions, int kernel, int stride, int padding) {
  const int first = pixel + padding - kernel + 1;  // where the first of them begins, if the stride were 1
  return {first > 0 ? (first + stride - 1) / stride : 0, min((pixel + padding) / stride, positions - 1)};
}

// Whether a pixel takes the place of the largest so far, y: a NaN is larger than everything, and the first one wins.
__device__ bool larger(Real pixel, Real y) { return pixel > y || (pixel != pixel && y == y); }

// y[n c oh ow] = mean of x over the window, in which padding counts as 0
extern "C" __global__ void avg_pool2d(const Real* __restrict__ x, Real* __restrict__ y, const Sizes s) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= s.n * s.c * s.oh * s.ow) return;
  const int top = i / s.ow % s.oh * s.sh - s.ph, left = i % s.ow * s.sw - s.pw;
  const Real* image = x + i / (s.oh * s.ow) % s.c * s.xc + i / (s.c * s.oh * s.ow) * s.xn;
  Real sum = 0;
  for (int row = max(top, 0); row < min(top + s.kh, s.h); row++)
    for (int column = max(left, 0); column < min(left + s.kw, s.w); column++) sum += image[row * s.xh + column * s.xw];
  y[i] = sum * (Real(1) / (s.kh * s.kw));
}

// gx[n c h w] = sum of gy over the windows on this pixel, divided by KH KW
extern "C" __global__ void avg_pool2d_grad(const Real* __restrict__ gy, Real* __restrict__ gx, const Sizes s) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= s.n * s.c * s.h * s.w) return;
  const Range rows = windows_on(i / s.w % s.h, s.oh, s.kh, s.sh, s.ph);
  const Range columns = windows_on(i % s.w, s.ow, s.kw, s.sw, s.pw);
  const Real* from = gy + i / (s.h * s.w) % s.c * s.gc + i / (s.c * s.h * s.w) * s.gn;
  Real sum = 0;
  for (int oh = rows.first; oh <= rows.last; oh++)
    for (int ow = columns.first; ow <= columns.last; ow++) sum += from[oh * s.gh + ow * s.gw] * (Real(1) / (s.kh * s.kw));
  gx[i] = sum;
}

// The place, row by row, of the first largest pixel of a window that begins at (top, left), and its value.
__device__ int largest(const Real* image, int top, int left, const Sizes& s, Real& y) {
  int place = -1;
  for (int row = max(top, 0); row < min(top + s.kh, s.h); row++)
    for (int column = max(left, 0); column < min(left + s.kw, s.w); column++) {
      const Real pixel = image[row * s.xh + column * s.xw];
      if (place >= 0 && !larger(pixel, y)) continue;
      y = pixel;
      place = row * s.w + column;
    }
  return place;
}

// y[n c oh ow] = largest x in the window
extern "C" __global__ void max_pool2d(const Real* __restrict__ x, Real* __restrict__ y, const Sizes s) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= s.n * s.c * s.oh * s.ow) return;
  const int top = i / s.ow % s.oh * s.sh - s.ph, left = i % s.ow * s.sw - s.pw;
  largest(x + i / (s.oh * s.ow) % s.c * s.xc + i / (s.c * s.oh * s.ow) * s.xn, top, left, s, y[i]);
}

// gx[n c h w] = sum of gy over the windows in which this pixel is the first largest
extern "C" __global__ void max_pool2d_grad(const Real* __restrict__ x, const Real* __restrict__ gy,
                                           Real* __restrict__ gx, const Sizes s) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= s.n * s.c * s.h * s.w) return;
  const Range rows = windows_on(i / s.w % s.h, s.oh, s.kh, s.sh, s.ph);
  const Range columns = windows_on(i % s.w, s.ow, s.kw, s.sw, s.pw);
  const int c = i / (s.h * s.w) % s.c, n = i / (s.c * s.h * s.w);
  Real sum = 0, y;
  for (int oh = rows.first; oh <= rows.last; oh++)
    for (int ow = columns.first; ow <= columns.last; ow++)
      if (largest(x + n * s.xn + c * s.xc, oh * s.sh - s.ph, ow * s.sw - s.pw, s, y) == i % (s.h * s.w))
        sum += gy[n * s.gn + c * s.gc + oh * s.gh + ow * s.gw];
  gx[i] = sum;
}
