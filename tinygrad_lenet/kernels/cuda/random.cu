// Random numbers that are a function of a key and of their place, so that every device makes the same ones.

typedef unsigned long long Word;

// The upper 64 bits of a b, from products of halves, which 64 bits can hold.
__device__ Word upper(Word a, Word b) {
  const Word low = a & 0xFFFFFFFF, high = a >> 32, b_low = b & 0xFFFFFFFF, b_high = b >> 32;
  const Word middle = high * b_low + (low * b_low >> 32), other = low * b_high + (middle & 0xFFFFFFFF);
  return high * b_high + (middle >> 32) + (other >> 32);
}

// y[i] = False with probability limit / 2^32, by Philox4x64-10; the op says which bits decide.
extern "C" __global__ void bernoulli(const Word* __restrict__ key, bool* __restrict__ y, int n, unsigned limit) {
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  Word block[4] = {(Word)number + 1, 0, 0, 0}, first = *key, second = 0;
  for (int round = 0; round < 10; round++) {
    const Word high0 = upper(0xD2E7470EE14C6C93ULL, block[0]), low0 = 0xD2E7470EE14C6C93ULL * block[0];
    const Word high1 = upper(0xCA5A826395121157ULL, block[2]), low1 = 0xCA5A826395121157ULL * block[2];
    block[0] = high1 ^ block[1] ^ first;
    block[1] = low1;
    block[2] = high0 ^ block[3] ^ second;
    block[3] = low0;
    first += 0x9E3779B97F4A7C15ULL;
    second += 0xBB67AE8584CAA73BULL;
  }
  for (int j = 0; j < 8; j++)
    if (8 * number + j < n) y[8 * number + j] = (unsigned)(block[j / 2] >> (j % 2 * 32)) >= limit;
}
