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
#include "cpu/simd/simd_math.h"
#include "cpu/simd/transpose.h"
#include "ops/ops.h"

namespace dit::cpu::DIT_ISA {

namespace {

constexpr int64_t kQueries = 2 * kLanes;  // of a block
constexpr int64_t kKeys = 128;            // of a step; even
// Sums that a product keeps in registers, of two registers each, beside three for its factors.
constexpr int64_t kTile = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 4;
// Of O^T of the blocks that share a step.
constexpr int64_t kStateBytes = 512 * 1024;

// How a product takes its factors: one float in a lane, or two bfloat16. kWord channels (or keys)
// make a lane of four bytes.
struct Floats {
  static constexpr int64_t kWord = 1;
  static DIT_INLINE Vec multiplyAdd(Vec a, Vec b, Vec sum) { return a * b + sum; }
};

#ifdef __AVX512BF16__
struct Bf16Pairs {
  static constexpr int64_t kWord = 2;
  static DIT_INLINE Vec multiplyAdd(Vec a, Vec b, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

// K or V of one head: word (i, j) is 4 bytes at data + i * rowBytes + j * 4.
struct Words {
  const char* data;
  int64_t rowBytes;
};

DIT_INLINE Vec broadcast(const char* word) {
  float value;
  __builtin_memcpy(&value, word, sizeof(value));
  return splat(value);
}

// sum[i] += sum over n of a[i iBytes + n nBytes] b[n], i < kRows.
template <typename Product, int kRows>
DIT_INLINE void accumulate(const char* a, int64_t iBytes, int64_t nBytes, const float* b, int64_t n,
                           Vec (&sum)[kRows][2]) {
  for (int64_t k = 0; k < n; k++) {
    const Vec b0 = load(b + k * kQueries), b1 = load(b + k * kQueries + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
      const Vec factor = broadcast(a + i * iBytes + k * nBytes);
      sum[i][0] = Product::multiplyAdd(factor, b0, sum[i][0]);
      sum[i][1] = Product::multiplyAdd(factor, b1, sum[i][1]);
    }
  }
}

// Calls use.template operator()<rows>(i) for tiles that cover [0, n).
template <int kRows = kTile, typename Use>
DIT_INLINE void forTiles(int64_t n, int64_t i, Use&& use) {
  for (; i + kRows <= n; i += kRows) use.template operator()<kRows>(i);
  if constexpr (kRows > 1) {
    if (i < n) forTiles<kRows / 2>(n, i, use);
  }
}

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
  const int64_t words = (d + Product::kWord - 1) / Product::kWord;
  forTiles(keys, 0, [&]<int kRows>(int64_t key) {
    Vec sum[kRows][2] = {};
    accumulate<Product>(k.data + key * k.rowBytes, k.rowBytes, 4, block.q, words, sum);
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

// Two registers of floats to one of bfloat16 pairs: first in the lower halves of the lanes.
DIT_INLINE Vec pairUp(Vec first, Vec second) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512bh both = _mm512_cvtne2ps_pbh(second, first);
  return reinterpret_cast<Vec>(_mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(both)));
}

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

// O^T = factor O^T + V^T P^T; without O^T before the first step.
template <typename Product>
void output(const Words& v, int64_t keys, int64_t d, bool first, const Vec (&factor)[2],
            const float* p, float* o) {
  const int64_t words = (keys + Product::kWord - 1) / Product::kWord;
  forTiles(d, 0, [&]<int kRows>(int64_t channel) {
    Vec sum[kRows][2] = {};
    float* at = o + channel * kQueries;
    if (!first) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; i++) {
        for (int half = 0; half < 2; half++) {
          sum[i][half] = load(at + i * kQueries + half * kLanes) * factor[half];
        }
      }
    }
    accumulate<Product>(v.data + channel * 4, 4, v.rowBytes, p, words, sum);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
      for (int half = 0; half < 2; half++) {
        store(at + i * kQueries + half * kLanes, sum[i][half]);
      }
    }
  });
}

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
  output<Product>(v, keys, d, first, factor, s, block.o);
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

// Q^T of a block from loadRow(query, word, lanes); 0 in the lanes without a query.
template <typename LoadRow>
DIT_INLINE void packQueries(int64_t queries, int64_t words, float* packed, LoadRow&& loadRow) {
  for (int64_t from = 0; from < kQueries; from += kLanes) {
    forLanes(words, [&](int64_t word, auto lanes) {
      transposeTile(
          queries - from, words - word, [&](int i) { return loadRow(from + i, word, lanes); },
          [&](int i, Vec row) { store(packed + (word + i) * kQueries + from, row); });
    });
  }
}

template <typename In>
void packBlock(Floats, const Head<In>& head, int64_t first, float* packed) {
  const In* q = head.q + first * head.rowStride;
  packQueries(head.tokens - first, head.d, packed, [&](int64_t query, int64_t word, auto lanes) {
    return load(q + query * head.rowStride + word, lanes);
  });
}

// O^T / total, turned back to rows of y.
template <typename Out>
void finish(const Block& block, int64_t queries, int64_t d, Out* y, int64_t rowStride) {
  for (int64_t from = 0; from < kQueries && from < queries; from += kLanes) {
    const Vec inverse = 1.0f / load(block.total + from);
    forLanes(d, [&](int64_t channel, auto lanes) {
      transposeTile(
          d - channel, queries - from,
          [&](int i) { return load(block.o + (channel + i) * kQueries + from) * inverse; },
          [&](int i, Vec row) { store(y + (from + i) * rowStride + channel, row, lanes); });
    });
  }
}

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

// An odd number of channels: the last pair of K takes in what follows it, which Q^T has 0 for.
void packBlock(Bf16Pairs, const Head<Bf16>& head, int64_t first, float* packed) {
  const Bf16* q = head.q + first * head.rowStride;
  const int64_t words = (head.d + 1) / 2;
  packQueries(head.tokens - first, words, packed, [&](int64_t query, int64_t word, auto lanes) {
    return load(reinterpret_cast<const float*>(q + query * head.rowStride + 2 * word), lanes);
  });
  if (head.d % 2 != 0) {
    for (int64_t i = 0; i < kQueries; i += kLanes) {
      float* last = packed + (words - 1) * kQueries + i;
      store(last, bitsToFloats(floatsToBits(load(last)) & 0xffff));
    }
  }
}

int64_t keyWords(Bf16Pairs, const Bf16*) { return kKeys / 2; }

// Word (i, j) of V: channel j of keys 2 i and 2 i + 1.
KeysAndValues prepareKeys(Bf16Pairs, const Head<Bf16>& head, int64_t first, int64_t keys,
                          float* memory) {
  for (int64_t key = 0; key < keys; key += 2) {
    const Bf16* even = head.v + (first + key) * head.rowStride;
    const Bf16* odd = even + head.rowStride;
    const bool pair = key + 1 < keys;
    forLanes(head.d, [&](int64_t j, auto lanes) {
      const UInts low = floatsToBits(load(even + j, lanes)) >> 16;
      const UInts high = pair ? floatsToBits(load(odd + j, lanes)) : UInts{};
      store(memory + key / 2 * head.d + j, bitsToFloats(low | high), lanes);
    });
  }
  return {{reinterpret_cast<const char*>(head.k + first * head.rowStride), head.rowStride * 2},
          {reinterpret_cast<const char*>(memory), head.d * 4}};
}

#else

int64_t keyWords(Floats, const Bf16*) { return 2 * kKeys; }

// Without dot products of bfloat16, floats.
KeysAndValues prepareKeys(Floats, const Head<Bf16>& head, int64_t first, int64_t keys,
                          float* memory) {
  float *k = memory, *v = memory + kKeys * head.d;
  for (int64_t key = 0; key < keys; key++) {
    const int64_t from = (first + key) * head.rowStride;
    forLanes(head.d, [&](int64_t j, auto lanes) {
      store(k + key * head.d + j, load(head.k + from + j, lanes), lanes);
      store(v + key * head.d + j, load(head.v + from + j, lanes), lanes);
    });
  }
  return {{reinterpret_cast<const char*>(k), head.d * 4},
          {reinterpret_cast<const char*>(v), head.d * 4}};
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
        keys((keyWords * d + kLanes - 1) / kLanes * kLanes) {}

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

// Blocks [begin, begin + count) of one head.
template <typename Product, typename In>
void attendBlocks(const Head<In>& head, int64_t begin, int64_t count, const Layout& layout,
                  float* memory, In* y, int64_t yStride) {
  const float scale = static_cast<float>(M_LOG2E / std::sqrt(static_cast<double>(head.d)));
  for (int64_t i = 0; i < count; i++) {
    const Block block = layout.block(memory, i);
    packBlock(Product{}, head, (begin + i) * kQueries, block.q);
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
    const int64_t first = (begin + i) * kQueries;
    finish(layout.block(memory, i), head.tokens - first, head.d, y + first * yStride, yStride);
  }
}

template <typename Product, typename In>
void run(const AttentionArgs& args) {
  const int64_t rows = args.y.shape[0], tokens = args.y.shape[1], c = args.y.shape[2];
  const int64_t d = c / args.heads;
  const int64_t blocks = (tokens + kQueries - 1) / kQueries, n = rows * args.heads * blocks;
  const Layout layout(d, blocks, keyWords(Product{}, static_cast<const In*>(nullptr)));
  const int64_t parts = std::min<int64_t>(threads(), n);
  float* memory = static_cast<float*>(scratch(static_cast<size_t>(parts * layout.count()) * 4));
  parallelRuns(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
    // As many blocks of one head at a time as fit.
    for (int64_t count; begin < end; begin += count) {
      const int64_t head = begin / blocks, block = begin % blocks;
      count = std::min({end - begin, blocks - block, layout.blocks});
      const int64_t row = head / args.heads, channel = head % args.heads * d;
      const In* q = args.qkv.as<In>() + row * tokens * 3 * c + channel;
      attendBlocks<Product, In>({q, q + c, q + 2 * c, 3 * c, tokens, d}, block, count, layout,
                                memory + part * layout.count(),
                                args.y.as<In>() + row * tokens * c + channel, c);
    }
  });
}

}  // namespace

void attention(const AttentionArgs& args) {
  if (args.qkv.dtype == DType::F32) {
    run<Floats, float>(args);
  } else {
#ifdef __AVX512BF16__
    run<Bf16Pairs, Bf16>(args);
#else
    run<Floats, Bf16>(args);
#endif
  }
}

}  // namespace dit::cpu::DIT_ISA
