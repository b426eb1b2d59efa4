#include "cpu/onednn.h"

#include <cstring>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace dit::cpu {

namespace {

using dnnl::algorithm;
using dnnl::memory;
using dnnl::post_ops;
using dnnl::primitive_attr;
using Convolution = dnnl::convolution_forward;
using InnerProduct = dnnl::inner_product_forward;
using WeightGradient = dnnl::inner_product_backward_weights;

memory::data_type dataType(DType type) {
  switch (type) {
    case DType::F32:
      return memory::data_type::f32;
    case DType::BF16:
      return memory::data_type::bf16;
    default:
      fail(ErrorCode::Internal, "oneDNN is not used with ", dtypeName(type));
  }
}

std::string describe(const ProductShape& s) {
  return detail::concat("a product of ", s.m, " x ", s.n, " x ", s.k, " in ", dtypeName(s.type));
}

std::string describe(const ConvShape& s) {
  return detail::concat("a ", s.kh, " x ", s.kw, " convolution of ", s.height, " x ", s.width,
                        " x ", s.ci, " to ", s.co, " channels in ", dtypeName(s.type));
}

std::string describe(const WeightGradientShape& s) {
  return detail::concat("the gradient of a weight of ", s.n, " x ", s.k, " from ", s.m, " rows in ",
                        dtypeName(s.type));
}

// Runs fn; an exception of oneDNN becomes an Error that names the operation.
template <typename Shape, typename Fn>
auto translated(const Shape& shape, Fn&& fn) {
  try {
    return fn();
  } catch (const dnnl::error& error) {
    const bool memoryIsOut = error.status == dnnl_out_of_memory;
    fail(memoryIsOut ? ErrorCode::Oom : ErrorCode::Internal, "oneDNN failed in ", describe(shape),
         ": ", error.what(), " (status ", static_cast<int>(error.status), ")");
  }
}

// One shape, compiled: the primitive, its arguments' descriptions, and memory objects that point
// to the operands of the call at hand.
struct Primitive {
  dnnl::primitive primitive;
  memory::desc weights;
  memory x, y, bias, gate, addend, scratchpad, dW;
  std::unordered_map<int, memory> arguments;
  size_t scratchBytes = 0;
  // The addend is what y holds, but the primitive can only add another tensor: so it gets a copy.
  bool copiesStored = false;
};

int postOpArgument(int index) { return DNNL_ARG_ATTR_MULTIPLE_POST_OP(index) | DNNL_ARG_SRC_1; }

// An implementation that oneDNN has for completeness, a thousand times slower than the others.
bool isReference(const dnnl::primitive_desc_base& desc) {
  return std::string_view(desc.impl_info_str()).starts_with("ref");
}

primitive_attr attributes(const post_ops& ops) {
  primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  attr.set_post_ops(ops);
  return attr;
}

void appendGelu(post_ops& ops) {
#if DNNL_VERSION_MAJOR >= 3
  ops.append_eltwise(algorithm::eltwise_gelu_tanh, 0, 0);
#else
  ops.append_eltwise(1, algorithm::eltwise_gelu_tanh, 0, 0);
#endif
}

}  // namespace

struct PackedWeight::Impl {
  Block block;
  memory::desc layout;
  memory values;
};

PackedWeight::PackedWeight() = default;
PackedWeight::PackedWeight(PackedWeight&&) noexcept = default;
PackedWeight& PackedWeight::operator=(PackedWeight&&) noexcept = default;
PackedWeight::~PackedWeight() = default;

size_t PackedWeight::bytes() const { return impl_ ? impl_->layout.get_size() : 0; }

struct OneDnn::Impl {
  template <typename Shape>
  using Cache = std::map<std::pair<int, Shape>, Primitive>;  // by number of threads and shape

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  Cache<ProductShape> products;
  Cache<ConvShape> convolutions;
  Cache<WeightGradientShape> weightGradients;
  Block scratch;  // oneDNN's own, of one primitive at a time
  Block stored;   // copies of y for primitives that copy it

  Cache<ProductShape>& cache(const ProductShape&) { return products; }
  Cache<ConvShape>& cache(const ConvShape&) { return convolutions; }
  Cache<WeightGradientShape>& cache(const WeightGradientShape&) { return weightGradients; }

  memory unbound(const memory::desc& desc) { return {desc, engine, DNNL_MEMORY_NONE}; }

  void* atLeast(Block& block, size_t bytes) {
    if (block.bytes() < bytes) {
      block = Block();
      block = Block(bytes);
    }
    return block.data();
  }

  // The arguments that products and convolutions share.
  template <typename Desc>
  Primitive bind(const Desc& desc) {
    Primitive p;
    p.weights = desc.weights_desc();
    p.arguments[DNNL_ARG_SRC] = p.x = unbound(desc.src_desc());
    p.arguments[DNNL_ARG_DST] = p.y = unbound(desc.dst_desc());
    const memory::desc bias = desc.bias_desc();
    if (bias.get_size() > 0) p.arguments[DNNL_ARG_BIAS] = p.bias = unbound(bias);
    bindScratchpad(p, desc);
    return p;
  }

  template <typename Desc>
  void bindScratchpad(Primitive& p, const Desc& desc) {
    p.arguments[DNNL_ARG_SCRATCHPAD] = p.scratchpad = unbound(desc.scratchpad_desc());
    p.scratchBytes = desc.scratchpad_desc().get_size();
  }

  // The addend as oneDNN's `sum` where it is what y holds, unless `copiesStored`. A product that
  // can only be had as a reference implementation gives no primitive unless `anything` will do.
  std::optional<Primitive> makeProduct(const ProductShape& s, bool copiesStored, bool anything) {
    const auto dense = memory::format_tag::ab;
    const memory::desc x({s.m, s.k}, dataType(s.type), dense);
    const memory::desc w({s.k, s.n}, dataType(s.type), memory::format_tag::any);
    const memory::desc gate({1, s.n}, memory::data_type::f32, dense);
    const memory::desc bias = s.bias ? gate : memory::desc();
    const memory::desc y({s.m, s.n}, dataType(s.output), dense);
    const DType addendType = s.addend == Addend::Stored ? s.output
                             : s.addend == Addend::F32  ? DType::F32
                                                        : DType::BF16;
    const memory::desc addend({s.m, s.n}, dataType(addendType), dense);

    post_ops ops;
    int gateArgument = 0, addendArgument = 0;
    if (s.gelu) appendGelu(ops);
    if (s.gate) {
      gateArgument = postOpArgument(ops.len());
      ops.append_binary(algorithm::binary_mul, gate);
    }
    if (s.addend == Addend::Stored && !copiesStored) {
      ops.append_sum(1);
    } else if (s.addend != Addend::None) {
      addendArgument = postOpArgument(ops.len());
      ops.append_binary(algorithm::binary_add, addend);
    }
    const primitive_attr attr = attributes(ops);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc desc(engine, x, w, bias, y, attr, /*allow_empty=*/true);
#else
    const dnnl::matmul::primitive_desc desc({x, w, bias, y}, attr, engine, /*allow_empty=*/true);
#endif
    if (!desc || (isReference(desc) && !anything)) return std::nullopt;

    Primitive p = bind(desc);
    p.primitive = dnnl::matmul(desc);
    p.copiesStored = s.addend == Addend::Stored && copiesStored;
    if (gateArgument) p.arguments[gateArgument] = p.gate = unbound(gate);
    if (addendArgument) p.arguments[addendArgument] = p.addend = unbound(addend);
    return p;
  }

  Primitive make(const ProductShape& s) {
    for (const bool anything : {false, true}) {
      for (const bool copiesStored : {false, true}) {
        if (auto primitive = makeProduct(s, copiesStored, anything)) return std::move(*primitive);
      }
    }
    fail(ErrorCode::Internal, "oneDNN has no implementation for ", describe(s));
  }

  Primitive make(const ConvShape& s) {
    const auto type = dataType(s.type);
    const auto channelsLast = memory::format_tag::nhwc;
    const memory::desc x({1, s.ci, s.height, s.width}, type, channelsLast);
    const memory::desc w({s.co, s.ci, s.kh, s.kw}, type, memory::format_tag::any);
    const memory::desc bias({s.co}, memory::data_type::f32, memory::format_tag::x);
    const memory::desc y({1, s.co, s.outHeight(), s.outWidth()}, type, channelsLast);
    const memory::dims strides = {s.stride, s.stride}, before = {s.padTop, s.padLeft},
                       after = {s.padBottom, s.padRight};
    post_ops ops;
    if (s.addend == Addend::Stored) ops.append_sum(1);
    const primitive_attr attr = attributes(ops);
    const auto kind = dnnl::prop_kind::forward_inference;
    const auto direct = algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
    const Convolution::primitive_desc desc(engine, kind, direct, x, w, bias, y, strides, before,
                                           after, attr);
#else
    const Convolution::primitive_desc desc({kind, direct, x, w, bias, y, strides, before, after},
                                           attr, engine);
#endif
    Primitive p = bind(desc);
    p.primitive = Convolution(desc);
    return p;
  }

  // Of oneDNN's ways to this product, the gradient of an inner product is the fastest: it reads dY
  // transposed by panels that stay in the cache (bf16, 4096 rows, N 1152, K 384 on two Zen 5 cores:
  // 4.1 ms, as a product of matrices 4.8 ms). The dense layout of dW is not its first choice, but
  // no slower, and needs no rewriting.
  Primitive make(const WeightGradientShape& s) {
    const auto type = dataType(s.type);
    const auto dense = memory::format_tag::ab;
    const memory::desc x({s.m, s.k}, type, dense), dY({s.m, s.n}, type, dense);
    const memory::desc w({s.n, s.k}, type, memory::format_tag::any);
    const memory::desc dW({s.n, s.k}, memory::data_type::f32, dense);
    const auto kind = dnnl::prop_kind::forward_training;
    const primitive_attr attr = attributes({});
#if DNNL_VERSION_MAJOR >= 3
    const InnerProduct::primitive_desc forward(engine, kind, x, w, dY);
    const WeightGradient::primitive_desc desc(engine, x, dW, dY, forward, attr);
#else
    const InnerProduct::primitive_desc forward({kind, x, w, dY}, engine);
    const WeightGradient::primitive_desc desc({x, dW, dY}, attr, engine, forward);
#endif
    Primitive p;
    p.primitive = WeightGradient(desc);
    p.arguments[DNNL_ARG_SRC] = p.x = unbound(x);
    p.arguments[DNNL_ARG_DIFF_DST] = p.y = unbound(dY);
    p.arguments[DNNL_ARG_DIFF_WEIGHTS] = p.dW = unbound(dW);
    bindScratchpad(p, desc);
    return p;
  }

  template <typename Shape>
  Primitive& find(const Shape& shape) {
    Cache<Shape>& known = cache(shape);
    const std::pair<int, Shape> key{threads(), shape};
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
    return known.emplace(key, make(shape)).first->second;
  }

  std::unique_ptr<PackedWeight::Impl> allocate(const memory::desc& layout) {
    auto weight = std::make_unique<PackedWeight::Impl>();
    weight->block = Block(layout.get_size());
    weight->layout = layout;
    weight->values = memory(layout, engine, weight->block.data());
    return weight;
  }

  void rewrite(memory from, memory to) {
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
  }

  // Into the weight's own memory, where it has some in the right layout.
  template <typename Shape>
  void pack(const Shape& shape, const memory::desc& given, const void* values,
            std::unique_ptr<PackedWeight::Impl>& weight) {
    const memory::desc& layout = find(shape).weights;
    if (!weight || weight->layout != layout) weight = allocate(layout);
    rewrite(memory(given, engine, const_cast<void*>(values)), weight->values);
  }

  void point(memory& argument, const void* data) {
    if (argument) argument.set_data_handle(const_cast<void*>(data));
  }

  void execute(Primitive& p) {
    if (p.scratchBytes > 0) point(p.scratchpad, atLeast(scratch, p.scratchBytes));
    p.primitive.execute(stream, p.arguments);
    stream.wait();
  }

  template <typename Shape>
  void run(const Shape& shape, std::unique_ptr<PackedWeight::Impl>& weight,
           const Operands& operands) {
    Primitive& p = find(shape);
    if (weight->layout != p.weights) {
      auto rewritten = allocate(p.weights);
      rewrite(weight->values, rewritten->values);
      weight = std::move(rewritten);
    }
    const void* addend = operands.addend;
    if (p.copiesStored) {
      const size_t bytes = p.y.get_desc().get_size();
      addend = std::memcpy(atLeast(stored, bytes), operands.y, bytes);
    }
    point(p.x, operands.x);
    point(p.y, operands.y);
    point(p.bias, operands.bias);
    point(p.gate, operands.gate);
    point(p.addend, addend);
    p.arguments[DNNL_ARG_WEIGHTS] = weight->values;
    execute(p);
  }

  void run(const WeightGradientShape& shape, const void* dY, const void* x, float* dW) {
    Primitive& p = find(shape);
    point(p.y, dY);
    point(p.x, x);
    point(p.dW, dW);
    execute(p);
  }
};

OneDnn::OneDnn() : impl_(std::make_unique<Impl>()) {}
OneDnn::~OneDnn() = default;

bool OneDnn::hasBf16() {
  // Each instruction set is a set of bits that holds those of the sets that it includes.
  const unsigned needed = dnnl_cpu_isa_avx512_core_bf16;
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & needed) == needed;
}

PackedWeight OneDnn::pack(const ProductShape& shape, const void* values, DType type) {
  return translated(shape, [&] {
    const memory::desc given({shape.k, shape.n}, dataType(type), memory::format_tag::ba);
    PackedWeight weight;
    impl_->pack(shape, given, values, weight.impl_);
    return weight;
  });
}

PackedWeight OneDnn::pack(const ConvShape& shape, const void* values, DType type) {
  return translated(shape, [&] {
    const memory::desc given({shape.co, shape.ci, shape.kh, shape.kw}, dataType(type),
                             memory::format_tag::oihw);
    PackedWeight weight;
    impl_->pack(shape, given, values, weight.impl_);
    return weight;
  });
}

void OneDnn::repack(const ProductShape& shape, PackedWeight& weight, const void* values,
                    bool transposed) {
  translated(shape, [&] {
    const auto layout = transposed ? memory::format_tag::ab : memory::format_tag::ba;
    const memory::desc given({shape.k, shape.n}, dataType(shape.type), layout);
    impl_->pack(shape, given, values, weight.impl_);
  });
}

void OneDnn::run(const ProductShape& shape, PackedWeight& weight, const Operands& operands) {
  translated(shape, [&] { impl_->run(shape, weight.impl_, operands); });
}

void OneDnn::run(const ConvShape& shape, PackedWeight& weight, const Operands& operands) {
  translated(shape, [&] { impl_->run(shape, weight.impl_, operands); });
}

void OneDnn::run(const WeightGradientShape& shape, const void* dY, const void* x, float* dW) {
  translated(shape, [&] { impl_->run(shape, dY, x, dW); });
}

}  // namespace dit::cpu
