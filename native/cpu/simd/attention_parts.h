#pragma once

// What attention and its derivative share: the products, and their operands in the forms that the
// products read.
//
// A product sums one number, broadcast from where it lies in the first operand, times registers of
// the second: two registers side by side, kColumns numbers, kTile sums of them at a time.
// bfloat16: the products take pairs, as the processor's dot product does.
#include <type_traits>

#include "cpu/simd/transpose.h"

namespace dit::cpu::DIT_ISA {

constexpr int64_t kColumns = 2 * kLanes;
// Sums that a product keeps in registers, of two registers each, beside three for its factors.
constexpr int kTile = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 4;

// How a product takes its factors: one float in a lane, or two bfloat16. kWord channels (or tokens)
// make a lane of four bytes. Element: the type of weights that are rounded to be factors.
struct Floats {
  using Element = float;
  static constexpr int64_t kWord = 1;
  static DIT_INLINE Vec multiplyAdd(Vec a, Vec b, Vec sum) { return a * b + sum; }
};

#ifdef __AVX512BF16__
struct Bf16Pairs {
  using Element = Bf16;
  static constexpr int64_t kWord = 2;
  static DIT_INLINE Vec multiplyAdd(Vec a, Vec b, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

// The products that this processor has for operands of a type.
#ifdef __AVX512BF16__
template <typename In>
using ProductOf = std::conditional_t<std::is_same_v<In, float>, Floats, Bf16Pairs>;
#else
template <typename In>
using ProductOf = Floats;
#endif

template <typename Product>
constexpr int64_t words(int64_t n) {
  return (n + Product::kWord - 1) / Product::kWord;
}

constexpr int64_t wholeRegisters(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// A matrix: word (i, j) is 4 bytes at data + i * rowBytes + j * 4.
struct Words {
  const char* data;
  int64_t rowBytes;

  const char* at(int64_t i, int64_t j) const { return data + i * rowBytes + j * 4; }
};

inline Words denseWords(const float* data, int64_t rowWords) {
  return {reinterpret_cast<const char*>(data), rowWords * 4};
}

DIT_INLINE Vec broadcast(const char* word) {
  float value;
  __builtin_memcpy(&value, word, sizeof(value));
  return splat(value);
}

// sum[i] += sum over n of a[i iBytes + n nBytes] b[n bStride], i < kRows.
template <typename Product, int kRows, int kRegisters>
DIT_INLINE void accumulate(const char* a, int64_t iBytes, int64_t nBytes, const float* b,
                           int64_t bStride, int64_t n, Vec (&sum)[kRows][kRegisters]) {
  for (int64_t k = 0; k < n; k++) {
    Vec row[kRegisters];
    for (int j = 0; j < kRegisters; j++) row[j] = load(b + k * bStride + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
      const Vec factor = broadcast(a + i * iBytes + k * nBytes);
      for (int j = 0; j < kRegisters; j++) {
        sum[i][j] = Product::multiplyAdd(factor, row[j], sum[i][j]);
      }
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

// sums[channel] = start(sums[channel]) + sum over n of a[n, channel] b[n], [d, kColumns].
// start(at, half) gives the register that a sum at `at` starts with.
template <typename Product, typename Start>
DIT_INLINE void channelSums(const Words& a, int64_t n, int64_t d, const float* b, float* sums,
                            Start&& start) {
  forTiles(d, 0, [&]<int kRows>(int64_t channel) {
    Vec sum[kRows][2];
    float* at = sums + channel * kColumns;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
      for (int half = 0; half < 2; half++) {
        sum[i][half] = start(at + i * kColumns + half * kLanes, half);
      }
    }
    accumulate<Product>(a.at(0, channel), 4, a.rowBytes, b, kColumns, n, sum);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
      for (int half = 0; half < 2; half++) {
        store(at + i * kColumns + half * kLanes, sum[i][half]);
      }
    }
  });
}

// sums [d, kColumns], times factor(column) for a register of columns, turned to rows of y.
template <typename Out, typename Factor>
DIT_INLINE void storeColumns(const float* sums, int64_t columns, int64_t d, Out* y,
                             int64_t rowStride, Factor&& factor) {
  for (int64_t from = 0; from < kColumns && from < columns; from += kLanes) {
    const Vec times = factor(from);
    forLanes(d, [&](int64_t channel, auto lanes) {
      transposeTile(
          d - channel, columns - from,
          [&](int i) { return load(sums + (channel + i) * kColumns + from) * times; },
          [&](int i, Vec row) { store(y + (from + i) * rowStride + channel, row, lanes); });
    });
  }
}

// [words, kColumns] from loadRow(token, word, lanes); 0 in the columns without a token.
template <typename LoadRow>
DIT_INLINE void transposeTokens(int64_t tokens, int64_t words, float* packed, LoadRow&& loadRow) {
  for (int64_t from = 0; from < kColumns; from += kLanes) {
    forLanes(words, [&](int64_t word, auto lanes) {
      transposeTile(
          tokens - from, words - word, [&](int i) { return loadRow(from + i, word, lanes); },
          [&](int i, Vec row) { store(packed + (word + i) * kColumns + from, row); });
    });
  }
}

// Up to kColumns tokens of x [tokens, d] in columns: packed [words of channels, kColumns].
template <typename In>
void packColumns(Floats, const In* x, int64_t rowStride, int64_t tokens, int64_t d, float* packed) {
  transposeTokens(tokens, d, packed, [&](int64_t token, int64_t word, auto lanes) {
    return load(x + token * rowStride + word, lanes);
  });
}

// x [tokens, d] as words of tokens: packed [words of tokens, wholeRegisters(d)], 0 beyond d.
template <typename In>
void packTokens(Floats, const In* x, int64_t rowStride, int64_t tokens, int64_t d, float* packed) {
  for (int64_t i = 0; i < tokens; i++, x += rowStride, packed += wholeRegisters(d)) {
    forLanes(d, [&](int64_t j, auto lanes) { store(packed + j, load(x + j, lanes)); });
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

// Pairs of the channels at x, of which there are `channels`; 0 beyond, where nothing is read.
DIT_INLINE Vec loadPairs(const Bf16* x, int64_t channels) {
  const __mmask32 mask = channels < 2 * kLanes ? (1u << channels) - 1 : ~0u;
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_epi16(mask, x));
}

inline void packColumns(Bf16Pairs, const Bf16* x, int64_t rowStride, int64_t tokens, int64_t d,
                        float* packed) {
  transposeTokens(tokens, words<Bf16Pairs>(d), packed, [&](int64_t token, int64_t word, auto) {
    return loadPairs(x + token * rowStride + 2 * word, d - 2 * word);
  });
}

// x [tokens, d] as words of channels: packed [tokens, words of channels].
inline void packChannels(const Bf16* x, int64_t rowStride, int64_t tokens, int64_t d,
                         float* packed) {
  const int64_t rowWords = words<Bf16Pairs>(d);
  for (int64_t i = 0; i < tokens; i++, x += rowStride, packed += rowWords) {
    forLanes(rowWords, [&](int64_t word, auto lanes) {
      store(packed + word, loadPairs(x + 2 * word, d - 2 * word), lanes);
    });
  }
}

inline void packTokens(Bf16Pairs, const Bf16* x, int64_t rowStride, int64_t tokens, int64_t d,
                       float* packed) {
  for (int64_t i = 0; i < tokens; i += 2, x += 2 * rowStride, packed += wholeRegisters(d)) {
    const bool pair = i + 1 < tokens;
    forLanes(d, [&](int64_t j, auto lanes) {
      const UInts low = floatsToBits(load(x + j, lanes)) >> 16;
      const UInts high = pair ? floatsToBits(load(x + rowStride + j, lanes)) : UInts{};
      store(packed + j, bitsToFloats(low | high));
    });
  }
}

#endif

}  // namespace dit::cpu::DIT_ISA
