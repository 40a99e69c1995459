// Multi-scale deformable attention on the CPU, forward and backward.
//
// Included once for each instruction set: TARGET is the compiler's attribute for it and ISA the
// namespace. Everything is a plain loop over contiguous channels that the compiler vectorises.
//
// Shapes: N images, S value tokens, M heads, D channels per head, Q queries, L levels, P points.
//   value (N, S, M, D)   locations (N, Q, M, L, P, 2) as (x, y) in [0, 1]   weights (N, Q, M, L, P)
// or, with OFFSETS, where query i is token i: offsets from the token's own pixel, in pixels of the
// level read, and logits, of which the weights are the softmax.

namespace ISA {

// The four pixels around a point: their offsets from the level's first, their shares of the point.
template <typename T>
struct Corners {
  int64_t offset[4];  // in elements of value
  T share[4];         // bilinear; 0 where the pixel lies outside
  bool inside[4];
  T right, down;      // the point's place between the pixels, in [0, 1]
};

// Of a point in pixels; false when it sees none, as NaN and far points do.
template <typename T>
TARGET inline bool locate(T x, T y, int64_t height, int64_t width, int64_t stride, Corners<T>& c) {
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

// What is the same for all queries: per point, padded to whole vectors, the size of its level.
template <typename T>
struct Points {
  int64_t count, padded;
  std::vector<T> width, height;
  std::vector<int32_t> columns, rows, start;

  explicit Points(const Problem& p) : count(p.L * p.P), padded((count + 15) / 16 * 16) {
    width.assign(padded, T(1)), height.assign(padded, T(1));
    columns.assign(padded, 1), rows.assign(padded, 1), start.assign(padded, 0);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t l = k / p.P;
      width[k] = static_cast<T>(p.width[l]), height[k] = static_cast<T>(p.height[l]);
      columns[k] = static_cast<int32_t>(p.width[l]), rows[k] = static_cast<int32_t>(p.height[l]);
      start[k] = static_cast<int32_t>(p.start[l]);
    }
  }
};

// exp(x) for x <= 0, to the last bit or two; written out so that the compiler vectorises it.
TARGET inline float exp_nonpositive(float x) {
  const float bounded = x < -87.0f ? -87.0f : x;  // NaN stays
  // Adding and taking away 1.5 * 2^23 rounds to a whole number.
  const float n = (bounded * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f, y = y * r + 8.3334519073e-3f, y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f, y = y * r + 5.0000001201e-1f;
  y = (y * r) * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return x < -87.0f ? 0.0f : y * power;
}

TARGET inline double exp_nonpositive(double x) { return std::exp(x); }

// Points of one query and head, in pixels of their levels: x, y and weight, `padded` of each.
template <typename T>
struct Row {
  std::vector<T> numbers;
  T *x, *y, *weight, *share[4];
  std::vector<int32_t> whole;
  int32_t *pixel, *inside;  // of the top-left corner; a bit for each corner inside the level

  explicit Row(int64_t padded) : numbers(7 * padded), whole(2 * padded) {
    x = numbers.data(), y = x + padded, weight = y + padded;
    for (int k = 0; k < 4; ++k) share[k] = weight + (1 + k) * padded;
    pixel = whole.data(), inside = pixel + padded;
  }
};

// Centre of the pixel that a token is, in [0, 1].
template <typename T>
TARGET inline void centre_of(const Problem& p, int64_t token, T& x, T& y) {
  int64_t l = p.L - 1;
  while (p.start[l] > token) --l;
  const int64_t place = token - p.start[l];
  x = (static_cast<T>(place % p.width[l]) + T(0.5)) / static_cast<T>(p.width[l]);
  y = (static_cast<T>(place / p.width[l]) + T(0.5)) / static_cast<T>(p.height[l]);
}

template <typename T>
TARGET inline void softmax(const T* logits, T* weight, int64_t count) {
  T largest = logits[0];
  for (int64_t k = 1; k < count; ++k) largest = logits[k] > largest ? logits[k] : largest;
  T total = 0;
  for (int64_t k = 0; k < count; ++k) weight[k] = exp_nonpositive(logits[k] - largest);
  for (int64_t k = 0; k < count; ++k) total += weight[k];
  const T share = T(1) / total;
  for (int64_t k = 0; k < count; ++k) weight[k] *= share;
}

// Fill x, y and weight: from locations and weights, or from offsets and logits around (cx, cy).
template <typename T, bool OFFSETS>
TARGET inline void place(const Points<T>& points, const T* xy, const T* weights, T cx, T cy,
                         Row<T>& row) {
  const T *width = points.width.data(), *height = points.height.data();
  T *x = row.x, *y = row.y;
  for (int64_t k = 0; k < points.count; ++k) {
    x[k] = OFFSETS ? xy[2 * k] + (cx * width[k] - T(0.5)) : xy[2 * k] * width[k] - T(0.5);
    y[k] = OFFSETS ? xy[2 * k + 1] + (cy * height[k] - T(0.5)) : xy[2 * k + 1] * height[k] - T(0.5);
  }
  if (OFFSETS) {
    softmax(weights, row.weight, points.count);
  } else {
    for (int64_t k = 0; k < points.count; ++k) row.weight[k] = weights[k];
  }
}

// Corners and shares of all points of a row at once, weights included.
template <typename T>
TARGET inline void spread(const Points<T>& points, Row<T>& row) {
  const T *width = points.width.data(), *height = points.height.data();
  const int32_t *columns = points.columns.data(), *rows = points.rows.data();
  const int32_t* start = points.start.data();
  T *s0 = row.share[0], *s1 = row.share[1], *s2 = row.share[2], *s3 = row.share[3];
#pragma GCC ivdep
  for (int64_t k = 0; k < points.padded; ++k) {
    // NaN and far points end up two pixels outside, where every corner is.
    T x = row.x[k] > T(-2) ? row.x[k] : T(-2), y = row.y[k] > T(-2) ? row.y[k] : T(-2);
    x = x < width[k] ? x : width[k], y = y < height[k] ? y : height[k];
    // Truncation after a shift into the positive numbers is floor.
    const int32_t left = static_cast<int32_t>(x + T(2)) - 2;
    const int32_t top = static_cast<int32_t>(y + T(2)) - 2;
    const T right = x - static_cast<T>(left), down = y - static_cast<T>(top);
    const int32_t in_left = (left >= 0) & (left < columns[k]);
    const int32_t in_right = (left >= -1) & (left + 1 < columns[k]);
    const int32_t in_top = (top >= 0) & (top < rows[k]);
    const int32_t in_bottom = (top >= -1) & (top + 1 < rows[k]);
    row.inside[k] = (in_top & in_left) | (in_top & in_right) << 1 | (in_bottom & in_left) << 2 |
                    (in_bottom & in_right) << 3;
    row.pixel[k] = start[k] + top * columns[k] + left;
    const T upper = row.weight[k] * (1 - down), lower = row.weight[k] * down;
    s0[k] = upper * (1 - right), s1[k] = upper * right;
    s2[k] = lower * (1 - right), s3[k] = lower * right;
  }
}

// STATIC_D is D where known when compiling, so that sums stay in registers; 0 otherwise.
template <typename T, int STATIC_D, bool OFFSETS>
TARGET void forward_queries(const Problem& p, const T* value, const T* xy, const T* weights,
                            T* output, int64_t begin, int64_t end) {
  const int64_t D = STATIC_D > 0 ? STATIC_D : p.D;
  const int64_t stride = p.M * D;
  const Points<T> points(p);
  Row<T> row(points.padded);
  for (int64_t nq = begin; nq < end; ++nq) {
    const T* image = value + (nq / p.Q) * p.S * stride;
    T cx = 0, cy = 0;
    if (OFFSETS) centre_of(p, nq % p.Q, cx, cy);
    for (int64_t m = 0; m < p.M; ++m) {
      T local[STATIC_D > 0 ? STATIC_D : 1];
      T* sum = STATIC_D > 0 ? local : output + (nq * p.M + m) * D;
      for (int64_t d = 0; d < D; ++d) sum[d] = T(0);
      const int64_t first = (nq * p.M + m) * points.count;
      place<T, OFFSETS>(points, xy + 2 * first, weights + first, cx, cy, row);
      spread(points, row);
      for (int64_t k = 0; k < points.count; ++k) {
        const int32_t inside = row.inside[k];
        if (!inside) continue;
        const T* v0 = image + row.pixel[k] * stride + m * D;
        const int64_t line = points.columns[k] * stride;
        if (inside == 15) {
          const T *v1 = v0 + stride, *v2 = v0 + line, *v3 = v2 + stride;
          const T w0 = row.share[0][k], w1 = row.share[1][k];
          const T w2 = row.share[2][k], w3 = row.share[3][k];
          for (int64_t d = 0; d < D; ++d) {
            sum[d] += w0 * v0[d] + w1 * v1[d] + (w2 * v2[d] + w3 * v3[d]);
          }
        } else {
          // Pixels outside are not read: they may hold Inf or NaN, which no share of 0 removes.
          for (int c = 0; c < 4; ++c) {
            if (!(inside >> c & 1)) continue;
            const T* v = v0 + (c & 1) * stride + (c >> 1) * line;
            const T w = row.share[c][k];
            for (int64_t d = 0; d < D; ++d) sum[d] += w * v[d];
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

// Locations in pixels and weights of queries, from offsets and logits.
template <typename T>
TARGET void expand_queries(const Problem& p, const T* offsets, const T* logits, T* xy, T* weights,
                           int64_t begin, int64_t end) {
  const Points<T> points(p);
  Row<T> row(points.padded);
  for (int64_t nq = begin; nq < end; ++nq) {
    T cx, cy;
    centre_of(p, nq % p.Q, cx, cy);
    for (int64_t m = 0; m < p.M; ++m) {
      const int64_t first = (nq * p.M + m) * points.count;
      place<T, true>(points, offsets + 2 * first, logits + first, cx, cy, row);
      for (int64_t k = 0; k < points.count; ++k) {
        xy[2 * (first + k)] = row.x[k], xy[2 * (first + k) + 1] = row.y[k];
        weights[first + k] = row.weight[k];
      }
    }
  }
}

// Gradients of weights, in place, to those of the logits they are the softmax of.
template <typename T>
TARGET void logit_gradients(int64_t count, const T* weights, T* grad, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* w = weights + r * count;
    T* g = grad + r * count;
    T mean = 0;
    for (int64_t k = 0; k < count; ++k) mean += w[k] * g[k];
    for (int64_t k = 0; k < count; ++k) g[k] = w[k] * (g[k] - mean);
  }
}

// Tasks are (image, head, level): each writes its own part of every gradient, so the sums have one
// order and the result does not depend on the number of threads.
// PIXELS: locations are pixels of their levels less half a one, and so are their gradients.
template <typename T, int STATIC_D, bool PIXELS>
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
    const T width = PIXELS ? T(1) : static_cast<T>(p.width[l]);
    const T height = PIXELS ? T(1) : static_cast<T>(p.height[l]);
    const T half = PIXELS ? T(0) : T(0.5);
    for (int64_t q = 0; q < p.Q; ++q) {
      const int64_t head = (n * p.Q + q) * p.M + m;
      const T* g = grad_output + head * D;
      for (int64_t i = 0; i < p.P; ++i) {
        const int64_t point = (head * p.L + l) * p.P + i;
        Corners<T> c;
        const T x = locations[2 * point] * width - half;
        const T y = locations[2 * point + 1] * height - half;
        if (!locate(x, y, p.height[l], p.width[l], stride, c)) {
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
