// attention: y = softmax(q k^T / sqrt(d)) v per row and head, qkv [R, T, 3C], y [R, T, C].
//
// Queries stand side by side in the lanes of a register, two registers of them: a block. Then
// both products have one form, and neither K nor V needs another layout than it has:
//
//   S^T[key, query]     = sum over channels of K[key, channel] Q^T[channel, query]
//   O^T[channel, query] = sum over keys     of V[key, channel] P^T[key, query]
//
// Each is a sum of one number, broadcast from where it lies in K or V, times a pair of registers,
// kTile sums at a time in registers. Softmax goes along the keys: from register to register, never
// across lanes. Only Q^T is made, once per block, and O^T turned back.
//
// Keys are taken kKeys at a time, so that P^T stays in the first-level cache; the running maximum
// and sum of every query correct what was accumulated before (online softmax, Milakov & Gimelshein
// 2018; Dao et al. 2022). bfloat16: the products take pairs of channels, and pairs of keys, as the
// processor's dot product does; a pair of channels is as it lies in K, pairs of keys are made of V
// in every step; the probabilities are rounded to bfloat16, the rest is float.
//
// The blocks of all rows and heads are shared out among threads. A block's result depends on its
// own row only.
#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/simd/attention_parts.h"
#include "cpu/simd/simd_math.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

constexpr int64_t kQueries = kColumns;  // of a block
constexpr int64_t kKeys = 128;          // of a step; even
// Of O^T of the blocks that share a step.
constexpr int64_t kStateBytes = 512 * 1024;

// What one block of queries keeps from step to step.
struct Block {
  float* q;      // [ceil(d / kWord), kQueries] words
  float* o;      // [d, kQueries]
  float* most;   // [kQueries]: the largest score so far
  float* total;  // [kQueries]: the sum of exp(score - most)
};

// S^T of `keys` keys, and the largest score of every query among them and before.
template <typename Product>
void scores(const Words& k, int64_t keys, int64_t d, const Block& block, float* s, Vec (&most)[2]) {
  forTiles(keys, 0, [&]<int kRows>(int64_t key) {
    Vec sum[kRows][2] = {};
    accumulate<Product>(k.at(key, 0), k.rowBytes, 4, block.q, kQueries, words<Product>(d), sum);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
      for (int half = 0; half < 2; half++) {
        most[half] = maximum(most[half], sum[i][half]);
        store(s + (key + i) * kQueries + half * kLanes, sum[i][half]);
      }
    }
  });
}

// P^T from S^T, in place: exp(scale (s - most)), scale in units of log 2. Adds to total.
DIT_INLINE void probabilities(Floats, int64_t keys, float scale, const Vec (&most)[2], float* s,
                              Vec (&total)[2]) {
  for (int64_t key = 0; key < keys; key++) {
    for (int half = 0; half < 2; half++) {
      float* at = s + key * kQueries + half * kLanes;
      const Vec p = exp2<false>((load(at) - most[half]) * scale);
      total[half] += p;
      store(at, p);
    }
  }
}

#ifdef __AVX512BF16__

// The same, with the probabilities of keys 2 i and 2 i + 1 as pairs in row i. One operation less:
// the exponent is rounded as a whole, which its result's rounding to bfloat16 hides.
DIT_INLINE void probabilities(Bf16Pairs, int64_t keys, float scale, const Vec (&most)[2], float* s,
                              Vec (&total)[2]) {
  const Vec shift[2] = {most[0] * scale, most[1] * scale};
  for (int64_t key = 0; key < keys; key += 2) {
    for (int half = 0; half < 2; half++) {
      const float* at = s + key * kQueries + half * kLanes;
      const Vec even = exp2<true>(load(at) * scale - shift[half]);
      Vec odd = {};
      if (key + 1 < keys) {
        odd = exp2<true>(load(at + kQueries) * scale - shift[half]);
      }
      total[half] += even + odd;
      store(s + key / 2 * kQueries + half * kLanes, pairUp(even, odd));
    }
  }
}

#endif

// One step: keys [0, keys) of k and v for one block.
template <typename Product>
void attend(const Words& k, const Words& v, int64_t keys, int64_t d, float scale, bool first,
            const Block& block, float* s) {
  const Vec before[2] = {load(block.most), load(block.most + kLanes)};
  Vec most[2] = {before[0], before[1]}, factor[2] = {}, total[2] = {};
  scores<Product>(k, keys, d, block, s, most);
  if (!first) {
    for (int half = 0; half < 2; half++) {
      factor[half] = exp2<false>((before[half] - most[half]) * scale);
      total[half] = load(block.total + half * kLanes) * factor[half];
    }
  }
  probabilities(Product{}, keys, scale, most, s, total);
  // O^T = factor O^T + V^T P^T; without O^T before the first step.
  channelSums<Product>(v, words<Product>(keys), d, s, block.o, [&](const float* at, int half) {
    return first ? Vec{} : load(at) * factor[half];
  });
  for (int half = 0; half < 2; half++) {
    store(block.most + half * kLanes, most[half]);
    store(block.total + half * kLanes, total[half]);
  }
}

// One head of one row of the round.
template <typename In>
struct Head {
  const In *q, *k, *v;
  int64_t rowStride;  // elements from token to token
  int64_t tokens, d;
};

// K and V of a step as the products read them: where they are, or made in `memory`, of keyWords
// words a channel.
struct KeysAndValues {
  Words k, v;
};

int64_t keyWords(Floats, const float*) { return 0; }

KeysAndValues prepareKeys(Floats, const Head<float>& head, int64_t first, int64_t, float*) {
  const int64_t rowBytes = head.rowStride * 4, at = first * rowBytes;
  return {{reinterpret_cast<const char*>(head.k) + at, rowBytes},
          {reinterpret_cast<const char*>(head.v) + at, rowBytes}};
}

#ifdef __AVX512BF16__

int64_t keyWords(Bf16Pairs, const Bf16*) { return kKeys / 2; }

// An odd number of channels: the last pair of K takes in what follows it, which Q^T has 0 for.
KeysAndValues prepareKeys(Bf16Pairs, const Head<Bf16>& head, int64_t first, int64_t keys,
                          float* memory) {
  const int64_t at = first * head.rowStride;
  packTokens(Bf16Pairs{}, head.v + at, head.rowStride, keys, head.d, memory);
  return {{reinterpret_cast<const char*>(head.k + at), head.rowStride * 2},
          denseWords(memory, wholeRegisters(head.d))};
}

#else

int64_t keyWords(Floats, const Bf16*) { return 2 * kKeys; }

// Without dot products of bfloat16, floats.
KeysAndValues prepareKeys(Floats, const Head<Bf16>& head, int64_t first, int64_t keys,
                          float* memory) {
  const int64_t at = first * head.rowStride, width = wholeRegisters(head.d);
  float *k = memory, *v = memory + kKeys * width;
  packTokens(Floats{}, head.k + at, head.rowStride, keys, head.d, k);
  packTokens(Floats{}, head.v + at, head.rowStride, keys, head.d, v);
  return {denseWords(k, width), denseWords(v, width)};
}

#endif

// How a thread's memory is laid out, in floats: scores, K and V, the blocks that share a step.
struct Layout {
  int64_t d;
  int64_t blocks;  // at most, so that K and V of many channels are read (and made) less often
  int64_t keys;    // of K and V

  Layout(int64_t d, int64_t headBlocks, int64_t keyWords)
      : d(d),
        blocks(std::clamp<int64_t>(kStateBytes / (d * kQueries * 4), 1, headBlocks)),
        keys(keyWords * wholeRegisters(d)) {}

  int64_t perBlock() const { return (2 * d + 2) * kQueries; }
  int64_t count() const { return kKeys * kQueries + keys + blocks * perBlock(); }

  float* scores(float* memory) const { return memory; }
  float* keysAndValues(float* memory) const { return memory + kKeys * kQueries; }
  Block block(float* memory, int64_t i) const {
    float* q = memory + kKeys * kQueries + keys + i * perBlock();
    float* o = q + d * kQueries;
    return {q, o, o + d * kQueries, o + (d + 1) * kQueries};
  }
};

// The natural logarithm of each query's sum of exp(score / sqrt(d)).
void storeLogSumExp(const Block& block, int64_t queries, int64_t d, float* logSumExp) {
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
  for (int64_t i = 0; i < std::min(queries, kQueries); i++) {
    logSumExp[i] = block.most[i] * scale + __builtin_logf(block.total[i]);
  }
}

// Where the results of one head go.
template <typename In>
struct Results {
  In* y;
  int64_t rowStride;
  float* logSumExp;  // or null
};

// Blocks [begin, begin + count) of one head.
template <typename Product, typename In>
void attendBlocks(const Head<In>& head, int64_t begin, int64_t count, const Layout& layout,
                  float* memory, const Results<In>& results) {
  const float scale = static_cast<float>(M_LOG2E / std::sqrt(static_cast<double>(head.d)));
  for (int64_t i = 0; i < count; i++) {
    const Block block = layout.block(memory, i);
    const int64_t first = (begin + i) * kQueries;
    packColumns(Product{}, head.q + first * head.rowStride, head.rowStride, head.tokens - first,
                head.d, block.q);
    for (int64_t lane = 0; lane < kQueries; lane++) block.most[lane] = -INFINITY;
  }
  for (int64_t key = 0; key < head.tokens; key += kKeys) {
    const int64_t keys = std::min(kKeys, head.tokens - key);
    const auto [k, v] = prepareKeys(Product{}, head, key, keys, layout.keysAndValues(memory));
    for (int64_t i = 0; i < count; i++) {
      attend<Product>(k, v, keys, head.d, scale, key == 0, layout.block(memory, i),
                      layout.scores(memory));
    }
  }
  for (int64_t i = 0; i < count; i++) {
    const Block block = layout.block(memory, i);
    const int64_t first = (begin + i) * kQueries, queries = head.tokens - first;
    storeColumns(block.o, queries, head.d, results.y + first * results.rowStride, results.rowStride,
                 [&](int64_t from) { return 1.0f / load(block.total + from); });
    if (results.logSumExp != nullptr) {
      storeLogSumExp(block, queries, head.d, results.logSumExp + first);
    }
  }
}

template <typename In>
void run(const AttentionArgs& args) {
  using Product = ProductOf<In>;
  const int64_t rows = args.y.shape[0], tokens = args.y.shape[1], c = args.y.shape[2];
  const int64_t d = c / args.heads;
  const int64_t blocks = (tokens + kQueries - 1) / kQueries, n = rows * args.heads * blocks;
  const Layout layout(d, blocks, keyWords(Product{}, static_cast<const In*>(nullptr)));
  const int64_t parts = std::min<int64_t>(threads(), n);
  float* memory = static_cast<float*>(scratch(static_cast<size_t>(parts * layout.count()) * 4));
  float* logSumExp = args.logSumExp ? args.logSumExp.as<float>() : nullptr;
  parallelRuns(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
    // As many blocks of one head at a time as fit.
    for (int64_t count; begin < end; begin += count) {
      const int64_t head = begin / blocks, block = begin % blocks;
      count = std::min({end - begin, blocks - block, layout.blocks});
      const int64_t row = head / args.heads, channel = head % args.heads * d;
      const In* q = args.qkv.as<In>() + row * tokens * 3 * c + channel;
      attendBlocks<Product, In>({q, q + c, q + 2 * c, 3 * c, tokens, d}, block, count, layout,
                                memory + part * layout.count(),
                                {args.y.as<In>() + row * tokens * c + channel, c,
                                 logSumExp ? logSumExp + head * tokens : nullptr});
    }
  });
}

}  // namespace

void attention(const AttentionArgs& args) {
  if (args.qkv.dtype == DType::F32) {
    run<float>(args);
  } else {
    run<Bf16>(args);
  }
}

}  // namespace dit::cpu::DIT_ISA
