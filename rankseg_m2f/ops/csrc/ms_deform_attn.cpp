// Registers rankseg_m2f_native::{forward, backward, forward_from_offsets, backward_from_offsets,
// source}; see kernel.h for shapes.

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

namespace {

struct Problem {
  int64_t N, S, M, D, Q, L, P;
  std::vector<int64_t> height, width, start;
};

}  // namespace

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define RANKSEG_X86 1
#endif

#define ISA baseline
#define TARGET
#include "kernel.h"
#undef ISA
#undef TARGET

#ifdef RANKSEG_X86
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma")))
#include "kernel.h"
#undef ISA
#undef TARGET
#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")))
#include "kernel.h"
#undef ISA
#undef TARGET
#endif

namespace {

enum class Isa { baseline, avx2, avx512 };

Isa best_isa() {
#ifdef RANKSEG_X86
  static const Isa best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
      return Isa::avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
    return Isa::baseline;
  }();
  return best;
#else
  return Isa::baseline;
#endif
}

// Calls NAME of the best instruction set; T and what follows it are its template's arguments.
#ifdef RANKSEG_X86
#define CALL_ISA(NAME, TEMPLATE, ...)                                \
  (best_isa() == Isa::avx512 ? avx512::NAME<TEMPLATE>(__VA_ARGS__)    \
   : best_isa() == Isa::avx2 ? avx2::NAME<TEMPLATE>(__VA_ARGS__)      \
                             : baseline::NAME<TEMPLATE>(__VA_ARGS__))
#else
#define CALL_ISA(NAME, TEMPLATE, ...) baseline::NAME<TEMPLATE>(__VA_ARGS__)
#endif
#define LIST(...) __VA_ARGS__
// The same for NAME<T, D, FLAG>, with D known to the compiler where it is usual.
#define CALL(NAME, T, FLAG, ...)                             \
  switch (p.D) {                                             \
    case 32:                                                 \
      CALL_ISA(NAME, LIST(T, 32, FLAG), __VA_ARGS__);        \
      break;                                                 \
    case 16:                                                 \
      CALL_ISA(NAME, LIST(T, 16, FLAG), __VA_ARGS__);        \
      break;                                                 \
    default:                                                 \
      CALL_ISA(NAME, LIST(T, 0, FLAG), __VA_ARGS__);         \
  }

Problem describe(const at::Tensor& value, at::IntArrayRef shapes, const at::Tensor& locations) {
  TORCH_CHECK(value.dim() == 4 && locations.dim() == 6, "value needs 4 axes, locations 6");
  Problem p;
  p.N = value.size(0), p.S = value.size(1), p.M = value.size(2), p.D = value.size(3);
  p.Q = locations.size(1), p.L = locations.size(3), p.P = locations.size(4);
  TORCH_CHECK(static_cast<int64_t>(shapes.size()) == 2 * p.L, "spatial_shapes needs L pairs");
  int64_t tokens = 0;
  for (int64_t l = 0; l < p.L; ++l) {
    p.height.push_back(shapes[2 * l]);
    p.width.push_back(shapes[2 * l + 1]);
    p.start.push_back(tokens);
    tokens += shapes[2 * l] * shapes[2 * l + 1];
  }
  TORCH_CHECK(tokens == p.S, "spatial_shapes and value disagree on the number of tokens");
  TORCH_CHECK(tokens <= std::numeric_limits<int32_t>::max(), "too many tokens");
  return p;
}

// The type sums are made in.
at::ScalarType wide(const at::Tensor& value) {
  return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor prepared(const at::Tensor& tensor, at::ScalarType type) {
  return tensor.to(type).contiguous();
}

// Of locations and weights, or with OFFSETS of offsets and logits.
template <bool OFFSETS>
at::Tensor forward_of(const at::Tensor& value, at::IntArrayRef shapes, const at::Tensor& points,
                      const at::Tensor& weights) {
  const Problem p = describe(value, shapes, points);
  const auto type = wide(value);
  const at::Tensor v = prepared(value, type), x = prepared(points, type);
  const at::Tensor w = prepared(weights, type);
  at::Tensor output = at::empty({p.N, p.Q, p.M * p.D}, v.options());
  AT_DISPATCH_FLOATING_TYPES(type, "ms_deform_attn", [&] {
    const auto *value_data = v.const_data_ptr<scalar_t>();
    const auto *x_data = x.const_data_ptr<scalar_t>(), *w_data = w.const_data_ptr<scalar_t>();
    auto* out = output.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, p.N * p.Q, 64, [&](int64_t begin, int64_t end) {
      CALL(forward_queries, scalar_t, OFFSETS, p, value_data, x_data, w_data, out, begin, end);
    });
  });
  return output.to(value.scalar_type());
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// All of type `wide`. PIXELS: locations and their gradients are in pixels.
template <bool PIXELS>
Gradients backward_of(const Problem& p, const at::Tensor& g, const at::Tensor& v,
                      const at::Tensor& x, const at::Tensor& w) {
  at::Tensor grad_value = at::zeros_like(v), grad_x = at::zeros_like(x), grad_w = at::zeros_like(w);
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "ms_deform_attn_backward", [&] {
    const auto *v_data = v.const_data_ptr<scalar_t>(), *x_data = x.const_data_ptr<scalar_t>();
    const auto *w_data = w.const_data_ptr<scalar_t>(), *g_data = g.const_data_ptr<scalar_t>();
    auto* gv = grad_value.mutable_data_ptr<scalar_t>();
    auto *gx = grad_x.mutable_data_ptr<scalar_t>(), *gw = grad_w.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, p.N * p.M * p.L, 1, [&](int64_t begin, int64_t end) {
      CALL(backward_tasks, scalar_t, PIXELS, p, v_data, x_data, w_data, g_data, gv, gx, gw, begin,
           end);
    });
  });
  return {grad_value, grad_x, grad_w};
}

at::Tensor forward(const at::Tensor& value, at::IntArrayRef shapes, const at::Tensor& locations,
                   const at::Tensor& weights) {
  return forward_of<false>(value, shapes, locations, weights);
}

Gradients backward(const at::Tensor& grad_output, const at::Tensor& value, at::IntArrayRef shapes,
                   const at::Tensor& locations, const at::Tensor& weights) {
  const Problem p = describe(value, shapes, locations);
  const auto type = wide(value);
  const auto [grad_value, grad_x, grad_w] =
      backward_of<false>(p, prepared(grad_output, type), prepared(value, type),
                         prepared(locations, type), prepared(weights, type));
  return {grad_value.to(value.scalar_type()), grad_x.to(locations.scalar_type()),
          grad_w.to(weights.scalar_type())};
}

at::Tensor forward_from_offsets(const at::Tensor& value, at::IntArrayRef shapes,
                                const at::Tensor& offsets, const at::Tensor& logits) {
  TORCH_CHECK(offsets.size(1) == value.size(1), "queries must be the tokens of value");
  return forward_of<true>(value, shapes, offsets, logits);
}

// Locations and weights live for this call alone: the forward pass keeps neither.
Gradients backward_from_offsets(const at::Tensor& grad_output, const at::Tensor& value,
                                at::IntArrayRef shapes, const at::Tensor& offsets,
                                const at::Tensor& logits) {
  TORCH_CHECK(offsets.size(1) == value.size(1), "queries must be the tokens of value");
  const Problem p = describe(value, shapes, offsets);
  const auto type = wide(value);
  const at::Tensor o = prepared(offsets, type), z = prepared(logits, type);
  at::Tensor x = at::empty_like(o), w = at::empty_like(z);
  AT_DISPATCH_FLOATING_TYPES(type, "ms_deform_attn_expand", [&] {
    const auto *o_data = o.const_data_ptr<scalar_t>(), *z_data = z.const_data_ptr<scalar_t>();
    auto *x_data = x.mutable_data_ptr<scalar_t>(), *w_data = w.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, p.N * p.Q, 64, [&](int64_t begin, int64_t end) {
      CALL_ISA(expand_queries, scalar_t, p, o_data, z_data, x_data, w_data, begin, end);
    });
  });
  at::Tensor grad_value, grad_offsets, grad_w;
  std::tie(grad_value, grad_offsets, grad_w) =
      backward_of<true>(p, prepared(grad_output, type), prepared(value, type), x, w);
  AT_DISPATCH_FLOATING_TYPES(type, "ms_deform_attn_logits", [&] {
    const auto* w_data = w.const_data_ptr<scalar_t>();
    auto* g_data = grad_w.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, p.N * p.Q * p.M, 1024, [&](int64_t begin, int64_t end) {
      CALL_ISA(logit_gradients, scalar_t, p.L * p.P, w_data, g_data, begin, end);
    });
  });
  return {grad_value.to(value.scalar_type()), grad_offsets.to(offsets.scalar_type()),
          grad_w.to(logits.scalar_type())};
}

std::string source() { return RANKSEG_SOURCE; }

}  // namespace

TORCH_LIBRARY(rankseg_m2f_native, library) {
  library.def("source() -> str", source);
  library.def("forward(Tensor value, int[] shapes, Tensor locations, Tensor weights) -> Tensor",
              forward);
  library.def(
      "forward_from_offsets(Tensor value, int[] shapes, Tensor offsets, Tensor logits) -> Tensor",
      forward_from_offsets);
  library.def(
      "backward_from_offsets(Tensor grad_output, Tensor value, int[] shapes, Tensor offsets, "
      "Tensor logits) -> (Tensor, Tensor, Tensor)",
      backward_from_offsets);
  library.def(
      "backward(Tensor grad_output, Tensor value, int[] shapes, Tensor locations, Tensor weights)"
      " -> (Tensor, Tensor, Tensor)",
      backward);
}
