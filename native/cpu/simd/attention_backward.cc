// attentionBackward: the derivative of attention.cc, dQkv [R, T, 3C] from qkv, y, logSumExp and dY.
//
// Here keys stand side by side in the lanes of a register, two registers of them: a block. Then
// four of the five products have the form of the forward's, and P and dS lie as they are used:
//
//   S[query, key]      = sum over channels of Q[query, channel] K^T[channel, key]
//   dP[query, key]     = sum over channels of dY[query, channel] V^T[channel, key]
//   dV^T[channel, key] = sum over queries  of dY[query, channel] P[query, key]
//   dK^T[channel, key] = sum over queries  of Q[query, channel] dS[query, key]
//   dQ[query, channel] = sum over keys     of dS[query, key] K[key, channel]
//
// with P = exp(S / sqrt(d) - logSumExp), dS = P (dP - D), D = rowsum(dY y) (Dao et al. 2022,
// appendix B). The last has channels in its lanes. 1 / sqrt(d) comes last, in dQ and dK.
//
// A head is one thread's work, for dQ sums over all keys: a group of kKeys keys after the other,
// and for each of them a step of kQueries queries after the other, whose P and dS stay in the
// cache. bfloat16: P and dS are rounded to bfloat16 where they are factors of a product; the rest
// is float. A head's result depends on its own row only.
#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/simd/attention_parts.h"
#include "cpu/simd/simd_math.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

constexpr int64_t kKeys = 128;     // of a group, a multiple of kColumns
constexpr int64_t kQueries = 128;  // of a step; even

// One head of one row of the round.
template <typename In>
struct Head {
  const In *q, *k, *v, *y, *dY;
  const float* logSumExp;
  In *dQ, *dK, *dV;
  int64_t qkvStride, yStride;  // elements from token to token
  int64_t tokens, d;
};

// Floats are words of channels and of tokens at once.
template <typename Product>
constexpr bool kBothAtOnce = Product::kWord == 1;

// What a thread's memory has where, in floats.
template <typename Product>
struct Layout {
  int64_t count = 0;
  int64_t channelWords;           // the words of a row of words of channels
  int64_t channelStride, stride;  // from row to row: words of channels, words of tokens
  int64_t qTokens, dYTokens, qChannels, dYChannels;  // Q and dY of the head
  int64_t logSumExp, delta, dQ;                      // of the head; in units of log 2; D; sums
  int64_t k, kT, vT, dKT, dVT;                       // of the group
  int64_t p, dS, dSRows;                             // of the step: of one block; of all

  Layout(int64_t tokens, int64_t d)
      : channelWords(words<Product>(d)),
        channelStride(kBothAtOnce<Product> ? wholeRegisters(d) : channelWords),
        stride(wholeRegisters(d)) {
    qTokens = take(words<Product>(tokens) * stride);
    dYTokens = take(words<Product>(tokens) * stride);
    qChannels = kBothAtOnce<Product> ? qTokens : take(tokens * channelStride);
    dYChannels = kBothAtOnce<Product> ? dYTokens : take(tokens * channelStride);
    logSumExp = take(tokens);
    delta = take(tokens);
    dQ = take(tokens * stride);
    k = take(words<Product>(kKeys) * stride);
    kT = take(channelWords * kKeys);
    vT = take(channelWords * kKeys);
    dKT = take(d * kKeys);
    dVT = take(d * kKeys);
    p = take(words<Product>(kQueries) * kColumns);
    dS = take(words<Product>(kQueries) * kColumns);
    dSRows = take(kQueries * words<Product>(kKeys));
  }

 private:
  int64_t take(int64_t floats) {
    const int64_t at = count;
    count += wholeRegisters(floats);
    return at;
  }
};

// Rows of weights as words of queries: [words of kRows, kColumns].
template <int kRows>
DIT_INLINE void storeWords(Floats, const Vec (&rows)[kRows][2], float* at) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows; i++) {
    for (int half = 0; half < 2; half++) {
      store(at + i * kColumns + half * kLanes, rows[i][half]);
    }
  }
}

#ifdef __AVX512BF16__

template <int kRows>
DIT_INLINE void storeWords(Bf16Pairs, const Vec (&rows)[kRows][2], float* at) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows; i += 2) {
    for (int half = 0; half < 2; half++) {
      const Vec odd = i + 1 < kRows ? rows[(i + 1) % kRows][half] : Vec{};
      store(at + i / 2 * kColumns + half * kLanes, pairUp(rows[i][half], odd));
    }
  }
}

#endif

// The derivative of one head, in one thread's memory.
template <typename Product, typename In>
class HeadBackward {
 public:
  HeadBackward(const Head<In>& head, const Layout<Product>& layout, float* memory)
      : head_(head), layout_(layout), memory_(memory), scale_(1 / std::sqrt(1.0 * head.d)) {}

  void run() {
    packQueries();
    for (int64_t key = 0; key < head_.tokens; key += kKeys) {
      const int64_t keys = std::min(kKeys, head_.tokens - key);
      packKeys(key, keys);
      for (int64_t query = 0; query < head_.tokens; query += kQueries) {
        const int64_t queries = std::min(kQueries, head_.tokens - query);
        for (int64_t from = 0; from < keys; from += kColumns) {
          makeWeights(query, queries, from, keys);
          addKeySums(query, queries, from);
        }
        addQuerySums(query, queries, keys, key == 0);
      }
      storeKeys(key, keys);
    }
    storeQueries();
  }

 private:
  using Element = typename Product::Element;

  void packQueries() {
    const int64_t tokens = head_.tokens, d = head_.d;
    packTokens(Product{}, head_.q, head_.qkvStride, tokens, d, memory_ + layout_.qTokens);
    packTokens(Product{}, head_.dY, head_.yStride, tokens, d, memory_ + layout_.dYTokens);
    if constexpr (!kBothAtOnce<Product>) {
      packChannels(head_.q, head_.qkvStride, tokens, d, memory_ + layout_.qChannels);
      packChannels(head_.dY, head_.yStride, tokens, d, memory_ + layout_.dYChannels);
    }
    for (int64_t i = 0; i < tokens; i++) {
      const In *y = head_.y + i * head_.yStride, *dY = head_.dY + i * head_.yStride;
      Vec sum = {};
      forLanes(d, [&](int64_t j, auto lanes) { sum += load(dY + j, lanes) * load(y + j, lanes); });
      memory_[layout_.delta + i] = sumLanes(sum);
      memory_[layout_.logSumExp + i] = static_cast<float>(head_.logSumExp[i] * M_LOG2E);
    }
  }

  void packKeys(int64_t key, int64_t keys) {
    const int64_t stride = head_.qkvStride, d = head_.d;
    const In *k = head_.k + key * stride, *v = head_.v + key * stride;
    packTokens(Product{}, k, stride, keys, d, memory_ + layout_.k);
    for (int64_t from = 0; from < keys; from += kColumns) {
      const int64_t at = from * layout_.channelWords;
      packColumns(Product{}, k + from * stride, stride, keys - from, d, memory_ + layout_.kT + at);
      packColumns(Product{}, v + from * stride, stride, keys - from, d, memory_ + layout_.vT + at);
    }
  }

  // P and dS of a step and of the block that begins at key `from` of the group. (Inlined, the
  // compiler runs out of registers for the sums.)
  __attribute__((noinline)) void makeWeights(int64_t query, int64_t queries, int64_t from,
                                             int64_t keys) {
    const int64_t channelWords = layout_.channelWords;
    const Words q = denseWords(memory_ + layout_.qChannels, layout_.channelStride);
    const Words dY = denseWords(memory_ + layout_.dYChannels, layout_.channelStride);
    const float* kT = memory_ + layout_.kT + from * channelWords;
    const float* vT = memory_ + layout_.vT + from * channelWords;
    const float* logSumExp = memory_ + layout_.logSumExp + query;
    const float* delta = memory_ + layout_.delta + query;
    float *p = memory_ + layout_.p, *dS = memory_ + layout_.dS;
    Element* dSRows = reinterpret_cast<Element*>(memory_ + layout_.dSRows) + from;
    const float scale = static_cast<float>(scale_ * M_LOG2E);
    // A lane without a key has a score of -infinity, and so no weight.
    Vec start[2] = {};
    for (int64_t lane = keys - from; lane < kColumns; lane++) {
      start[lane / kLanes][lane % kLanes] = -INFINITY;
    }
    forTiles(queries, 0, [&]<int kRows>(int64_t i) {
      Vec weight[kRows][2], change[kRows][2] = {};
#pragma GCC unroll 16
      for (int row = 0; row < kRows; row++) {
        for (int half = 0; half < 2; half++) weight[row][half] = start[half];
      }
      accumulate<Product>(q.at(query + i, 0), q.rowBytes, 4, kT, kColumns, channelWords, weight);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; row++) {
        const Vec shift = splat(logSumExp[i + row]);
        for (int half = 0; half < 2; half++) {
          weight[row][half] = exp2<Product::kWord == 2>(weight[row][half] * scale - shift);
        }
      }
      storeWords(Product{}, weight, p + i / Product::kWord * kColumns);
      accumulate<Product>(dY.at(query + i, 0), dY.rowBytes, 4, vT, kColumns, channelWords, change);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; row++) {
        const Vec mean = splat(delta[i + row]);
        for (int half = 0; half < 2; half++) {
          change[row][half] = weight[row][half] * (change[row][half] - mean);
          store(dSRows + (i + row) * kKeys + half * kLanes, change[row][half]);
        }
      }
      storeWords(Product{}, change, dS + i / Product::kWord * kColumns);
    });
  }

  // dK^T and dV^T of the block that begins at key `from` of the group, of a step more.
  void addKeySums(int64_t query, int64_t queries, int64_t from) {
    const int64_t n = words<Product>(queries), at = query / Product::kWord, d = head_.d;
    const Words q = denseWords(memory_ + layout_.qTokens + at * layout_.stride, layout_.stride);
    const Words dY = denseWords(memory_ + layout_.dYTokens + at * layout_.stride, layout_.stride);
    const auto before = [&](const float* sum, int) { return query == 0 ? Vec{} : load(sum); };
    channelSums<Product>(dY, n, d, memory_ + layout_.p, memory_ + layout_.dVT + from * d, before);
    channelSums<Product>(q, n, d, memory_ + layout_.dS, memory_ + layout_.dKT + from * d, before);
  }

  // dQ of a step, of a group more.
  void addQuerySums(int64_t query, int64_t queries, int64_t keys, bool first) {
    int64_t channel = 0;
    for (; channel + kColumns <= layout_.stride; channel += kColumns) {
      addQuerySums<2>(query, queries, keys, channel, first);
    }
    if (channel < layout_.stride) addQuerySums<1>(query, queries, keys, channel, first);
  }

  template <int kRegisters>
  void addQuerySums(int64_t query, int64_t queries, int64_t keys, int64_t channel, bool first) {
    const int64_t stride = layout_.stride;
    const Words dS = denseWords(memory_ + layout_.dSRows, words<Product>(kKeys));
    float* sums = memory_ + layout_.dQ + query * stride + channel;
    forTiles<kTile * 2 / kRegisters>(queries, 0, [&]<int kRows>(int64_t i) {
      Vec sum[kRows][kRegisters];
#pragma GCC unroll 16
      for (int row = 0; row < kRows; row++) {
        for (int j = 0; j < kRegisters; j++) {
          sum[row][j] = first ? Vec{} : load(sums + (i + row) * stride + j * kLanes);
        }
      }
      accumulate<Product>(dS.at(i, 0), dS.rowBytes, 4, memory_ + layout_.k + channel, stride,
                          words<Product>(keys), sum);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; row++) {
        for (int j = 0; j < kRegisters; j++) {
          store(sums + (i + row) * stride + j * kLanes, sum[row][j]);
        }
      }
    });
  }

  void storeKeys(int64_t key, int64_t keys) {
    const int64_t stride = head_.qkvStride, d = head_.d;
    for (int64_t from = 0; from < keys; from += kColumns) {
      const int64_t at = (key + from) * stride;
      storeColumns(memory_ + layout_.dKT + from * d, keys - from, d, head_.dK + at, stride,
                   [&](int64_t) { return splat(scale_); });
      storeColumns(memory_ + layout_.dVT + from * d, keys - from, d, head_.dV + at, stride,
                   [](int64_t) { return splat(1.0f); });
    }
  }

  void storeQueries() {
    for (int64_t i = 0; i < head_.tokens; i++) {
      const float* sums = memory_ + layout_.dQ + i * layout_.stride;
      In* dQ = head_.dQ + i * head_.qkvStride;
      forLanes(head_.d,
               [&](int64_t j, auto lanes) { store(dQ + j, load(sums + j) * scale_, lanes); });
    }
  }

  Head<In> head_;
  Layout<Product> layout_;
  float* memory_;
  float scale_;
};

template <typename In>
void run(const AttentionBackwardArgs& args) {
  using Product = ProductOf<In>;
  const int64_t rows = args.y.shape[0], tokens = args.y.shape[1], c = args.y.shape[2];
  const int64_t d = c / args.heads, n = rows * args.heads;
  const Layout<Product> layout(tokens, d);
  const int64_t parts = std::min<int64_t>(threads(), n);
  float* memory = static_cast<float*>(scratch(static_cast<size_t>(parts * layout.count) * 4));
  parallelRuns(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = i / args.heads, channel = i % args.heads * d;
      const int64_t at = row * tokens * c + channel, atQkv = row * tokens * 3 * c + channel;
      const In* q = args.qkv.as<In>() + atQkv;
      In* dQ = args.dQkv.as<In>() + atQkv;
      const Head<In> head{.q = q,
                          .k = q + c,
                          .v = q + 2 * c,
                          .y = args.y.as<In>() + at,
                          .dY = args.dY.as<In>() + at,
                          .logSumExp = args.logSumExp.as<float>() + i * tokens,
                          .dQ = dQ,
                          .dK = dQ + c,
                          .dV = dQ + 2 * c,
                          .qkvStride = 3 * c,
                          .yStride = c,
                          .tokens = tokens,
                          .d = d};
      HeadBackward<Product, In>(head, layout, memory + part * layout.count).run();
    }
  });
}

}  // namespace

void attentionBackward(const AttentionBackwardArgs& args) {
  if (args.qkv.dtype == DType::F32) {
    run<float>(args);
  } else {
    run<Bf16>(args);
  }
}

}  // namespace dit::cpu::DIT_ISA
