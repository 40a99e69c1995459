// Multi-scale deformable attention on the CPU, forward and backward.
//
// Included once for each instruction set: TARGET is the compiler's attribute for it and ISA the
// namespace. Everything is a plain loop over contiguous channels that the compiler vectorises.
//
// Shapes: N images, S value tokens, M heads, D channels per head, Q queries, L levels, P points.
//   value (N, S, M, D)   locations (N, Q, M, L, P, 2) as (x, y) in [0, 1]   weights (N, Q, M, L, P)

namespace ISA {

// The four pixels around a point: their offsets from the level's first, their shares of the point.
template <typename T>
struct Corners {
  int64_t offset[4];  // in elements of value
  T share[4];         // bilinear; 0 where the pixel lies outside
  bool inside[4];
  T right, down;      // the point's place between the pixels, in [0, 1]
};

// False when the point sees no pixel, as NaN and far points do.
template <typename T>
TARGET inline bool locate(T x, T y, int64_t height, int64_t width, int64_t stride, Corners<T>& c) {
  x = x * static_cast<T>(width) - T(0.5);
  y = y * static_cast<T>(height) - T(0.5);
  // Written so that NaN fails.
  if (!(x > T(-1) && x < static_cast<T>(width) && y > T(-1) && y < static_cast<T>(height))) {
    return false;
  }
  // Truncation after a shift into the positive numbers is floor.
  const int64_t left = static_cast<int64_t>(x + T(1)) - 1;
  const int64_t top = static_cast<int64_t>(y + T(1)) - 1;
  c.right = x - static_cast<T>(left);
  c.down = y - static_cast<T>(top);
  const bool in_left = left >= 0, in_right = left + 1 < width;
  const bool in_top = top >= 0, in_bottom = top + 1 < height;
  const bool inside[4] = {in_top && in_left, in_top && in_right, in_bottom && in_left,
                          in_bottom && in_right};
  const T share[4] = {(1 - c.down) * (1 - c.right), (1 - c.down) * c.right,
                      c.down * (1 - c.right), c.down * c.right};
  const int64_t first = (top * width + left) * stride;
  const int64_t offset[4] = {first, first + stride, first + width * stride,
                             first + (width + 1) * stride};
  for (int k = 0; k < 4; ++k) {
    c.inside[k] = inside[k];
    c.offset[k] = inside[k] ? offset[k] : 0;
    c.share[k] = inside[k] ? share[k] : T(0);
  }
  return true;
}

// STATIC_D is D where known when compiling, so that sums stay in registers; 0 otherwise.
template <typename T, int STATIC_D>
TARGET void forward_queries(const Problem& p, const T* value, const T* locations, const T* weights,
                            T* output, int64_t begin, int64_t end) {
  const int64_t D = STATIC_D > 0 ? STATIC_D : p.D;
  const int64_t stride = p.M * D;
  for (int64_t nq = begin; nq < end; ++nq) {
    const T* image = value + (nq / p.Q) * p.S * stride;
    for (int64_t m = 0; m < p.M; ++m) {
      T local[STATIC_D > 0 ? STATIC_D : 1];
      T* sum = STATIC_D > 0 ? local : output + (nq * p.M + m) * D;
      for (int64_t d = 0; d < D; ++d) sum[d] = T(0);
      int64_t point = (nq * p.M + m) * p.L * p.P;
      for (int64_t l = 0; l < p.L; ++l) {
        const T* level = image + p.start[l] * stride + m * D;
        for (int64_t i = 0; i < p.P; ++i, ++point) {
          Corners<T> c;
          if (!locate(locations[2 * point], locations[2 * point + 1], p.height[l], p.width[l],
                      stride, c)) {
            continue;
          }
          const T w = weights[point];
          const T w0 = w * c.share[0], w1 = w * c.share[1], w2 = w * c.share[2], w3 = w * c.share[3];
          // Pixels outside have share 0 and offset 0, a pixel that may hold Inf or NaN.
          const bool whole = c.inside[0] & c.inside[1] & c.inside[2] & c.inside[3];
          if (whole) {
            const T *v0 = level + c.offset[0], *v1 = level + c.offset[1];
            const T *v2 = level + c.offset[2], *v3 = level + c.offset[3];
            for (int64_t d = 0; d < D; ++d) {
              sum[d] += w0 * v0[d] + w1 * v1[d] + (w2 * v2[d] + w3 * v3[d]);
            }
          } else {
            const T corner_weight[4] = {w0, w1, w2, w3};
            for (int k = 0; k < 4; ++k) {
              if (!c.inside[k]) continue;
              const T* v = level + c.offset[k];
              const T wk = corner_weight[k];
              for (int64_t d = 0; d < D; ++d) sum[d] += wk * v[d];
            }
          }
        }
      }
      if (STATIC_D > 0) {
        T* out = output + (nq * p.M + m) * D;
        for (int64_t d = 0; d < D; ++d) out[d] = local[d];
      }
    }
  }
}

// Tasks are (image, head, level): each writes its own part of every gradient, so the sums have one
// order and the result does not depend on the number of threads.
template <typename T, int STATIC_D>
TARGET void backward_tasks(const Problem& p, const T* value, const T* locations, const T* weights,
                           const T* grad_output, T* grad_value, T* grad_locations, T* grad_weights,
                           int64_t begin, int64_t end) {
  const int64_t D = STATIC_D > 0 ? STATIC_D : p.D;
  const int64_t stride = p.M * D;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t l = task % p.L, m = task / p.L % p.M, n = task / (p.L * p.M);
    const int64_t base = (n * p.S + p.start[l]) * stride + m * D;
    const T* level = value + base;
    T* grad_level = grad_value + base;
    const T width = static_cast<T>(p.width[l]), height = static_cast<T>(p.height[l]);
    for (int64_t q = 0; q < p.Q; ++q) {
      const int64_t head = (n * p.Q + q) * p.M + m;
      const T* g = grad_output + head * D;
      for (int64_t i = 0; i < p.P; ++i) {
        const int64_t point = (head * p.L + l) * p.P + i;
        Corners<T> c;
        if (!locate(locations[2 * point], locations[2 * point + 1], p.height[l], p.width[l],
                    stride, c)) {
          continue;  // gradients were zeroed
        }
        const T w = weights[point];
        T dot[4] = {0, 0, 0, 0};
        for (int k = 0; k < 4; ++k) {
          if (!c.inside[k]) continue;
          const T* v = level + c.offset[k];
          T* gv = grad_level + c.offset[k];
          const T wk = w * c.share[k];
          T sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t d = 0; d < D; ++d) {
            sum += g[d] * v[d];
            gv[d] += wk * g[d];
          }
          dot[k] = sum;
        }
        grad_weights[point] = c.share[0] * dot[0] + c.share[1] * dot[1] + c.share[2] * dot[2] +
                              c.share[3] * dot[3];
        const T dx = (1 - c.down) * (dot[1] - dot[0]) + c.down * (dot[3] - dot[2]);
        const T dy = (1 - c.right) * (dot[2] - dot[0]) + c.right * (dot[3] - dot[1]);
        grad_locations[2 * point] = w * width * dx;
        grad_locations[2 * point + 1] = w * height * dy;
      }
    }
  }
}

}  // namespace ISA
