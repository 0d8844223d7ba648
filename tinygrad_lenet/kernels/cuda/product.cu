// Small matrix products, and the weight gradient of a convolution, which is one.
//
// A block of 256 threads makes a tile of y, 8 ROWS x 32 COLUMNS, and each thread ROWS x COLUMNS elements of it. Tiles
// of both factors, DEPTH deep, pass through shared memory. If y is small and the sums are long, blockIdx.z cuts them
// into parts, which go to y[part m n] and are added by `add_parts` (sum.cu), always in the same order.

#define DEPTH 32
#define TILE_M (8 * ROWS)
#define TILE_N (32 * COLUMNS)

struct Tiles {
  Real a[DEPTH][TILE_M + 1];  // one more, so that threads that write down a column do not meet in one bank
  Real b[DEPTH][TILE_N + 1];
};

// Adds the product of the two tiles to a thread's sums.
__device__ void multiply(const Tiles& tiles, Real sums[ROWS][COLUMNS]) {
  const int row = threadIdx.x / 32, column = threadIdx.x % 32;
#pragma unroll 8
  for (int k = 0; k < DEPTH; k++)
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) sums[i][j] += tiles.a[k][row + 8 * i] * tiles.b[k][column + 32 * j];
}

// Writes a thread's sums into y[part m n].
__device__ void store(const Real sums[ROWS][COLUMNS], const Real* bias, int step_bias, Real* y, int m, int n) {
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
      const int row = blockIdx.y * TILE_M + threadIdx.x / 32 + 8 * i;
      const int column = blockIdx.x * TILE_N + threadIdx.x % 32 + 32 * j;
      if (row < m && column < n)
        y[(blockIdx.z * m + row) * n + column] = sums[i][j] + (bias ? bias[column * step_bias] : Real(0));
    }
}

struct Matrices {
  int m, n, k, part;   // the sums over k are cut into parts of this length
  int am, ak, bk, bn;  // steps of a[m k] and b[k n] in memory, in elements
  int step_bias;
};

// y[m n] = bias[n] + sum over k of a[m k] b[k n]; neighbouring threads read what lies side by side.
extern "C" __global__ void __launch_bounds__(256)
    matmul(const Real* __restrict__ a, const Real* __restrict__ b, const Real* __restrict__ bias, Real* __restrict__ y,
           const Matrices s) {
  __shared__ Tiles tiles;
  Real sums[ROWS][COLUMNS] = {};
  const int top = blockIdx.y * TILE_M, left = blockIdx.x * TILE_N;
  const int end = min(s.k, (int)(blockIdx.z + 1) * s.part);
  for (int start = blockIdx.z * s.part; start < end; start += DEPTH) {
    for (int t = threadIdx.x; t < DEPTH * TILE_M; t += 256) {
      const int k = s.ak == 1 ? t % DEPTH : t / TILE_M, i = s.ak == 1 ? t / DEPTH : t % TILE_M;
      tiles.a[k][i] = start + k < end && top + i < s.m ? a[(top + i) * s.am + (start + k) * s.ak] : Real(0);
    }
    for (int t = threadIdx.x; t < DEPTH * TILE_N; t += 256) {
      const int k = s.bk == 1 ? t % DEPTH : t / TILE_N, j = s.bk == 1 ? t / DEPTH : t % TILE_N;
      tiles.b[k][j] = start + k < end && left + j < s.n ? b[(start + k) * s.bk + (left + j) * s.bn] : Real(0);
    }
    __syncthreads();
    multiply(tiles, sums);
    __syncthreads();
  }
  store(sums, bias, s.step_bias, y, s.m, s.n);
}

struct Windows {
  int f, c, kh, kw;            // the shape of gw
  int n, h, w, oh, ow, part;   // the sums over n, oh, ow are cut into parts of this length
  int sh, sw, ph, pw, dh, dw;  // stride, padding and dilation
  int xn, xc, xh, xw;          // steps of x and gy in memory, in elements
  int gn, gf, gh, gw;
};

// gw[f, (c kh kw)] = sum over k = (n oh ow) of gy[n f oh ow] x[n, c, S oh + D kh - P, S ow + D kw - P]
extern "C" __global__ void __launch_bounds__(256)
    conv2d_weight_grad(const Real* __restrict__ x, const Real* __restrict__ gy, Real* __restrict__ gw,
                       const Windows s) {
  __shared__ Tiles tiles;
  Real sums[ROWS][COLUMNS] = {};
  const int top = blockIdx.y * TILE_M, left = blockIdx.x * TILE_N, columns = s.c * s.kh * s.kw;
  const int end = min(s.n * s.oh * s.ow, (int)(blockIdx.z + 1) * s.part);
  const int lane = threadIdx.x % DEPTH;  // a thread fills one row of the tiles, so it finds n, oh, ow once
  for (int start = blockIdx.z * s.part; start < end; start += DEPTH) {
    const int k = start + lane, n = k / (s.oh * s.ow), oh = k / s.ow % s.oh, ow = k % s.ow;
    for (int i = threadIdx.x / DEPTH; i < TILE_M; i += 256 / DEPTH)
      tiles.a[lane][i] =
          k < end && top + i < s.f ? gy[n * s.gn + (top + i) * s.gf + oh * s.gh + ow * s.gw] : Real(0);
    for (int j = threadIdx.x / DEPTH; j < TILE_N; j += 256 / DEPTH) {
      const int q = left + j, c = q / (s.kh * s.kw);
      const int row = oh * s.sh + q / s.kw % s.kh * s.dh - s.ph, column = ow * s.sw + q % s.kw * s.dw - s.pw;
      const bool inside = k < end && q < columns && row >= 0 && row < s.h && column >= 0 && column < s.w;
      tiles.b[lane][j] = inside ? x[n * s.xn + c * s.xc + row * s.xh + column * s.xw] : Real(0);
    }
    __syncthreads();
    multiply(tiles, sums);
    __syncthreads();
  }
  store(sums, nullptr, 0, gw, s.f, columns);
}
