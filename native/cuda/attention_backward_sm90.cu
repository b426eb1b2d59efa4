// The derivative of attention in bf16 on Hopper for head dimensions of 64 and 72
// (attention_backward.cu has the mathematics and all other cases): products of warpgroups on what
// TMA brings, five of T x T x d, as many as are needed.
//
// A block stays for all its heads and works through one after the other: tiles of 128 keys, and for
// each all queries, 64 at a time. Two warpgroups have 64 of the keys each and, transposed, what
// belongs to them, so that P and dS are operands straight from registers; a third one has dQ, a
// fourth copies:
//
//   warpgroups 0, 1   S^T = k q^T    dP^T = v dY^T    dV += P^T dY    dK += dS^T q
//   warpgroup 2       dQ += dS k, over all 128 keys; dS comes from the others through shared memory
//
// dQ sums over keys, which come tile by tile. Nothing is added from several blocks: what a query
// has so far lies in memory between tiles of keys, each number written and read by one and the same
// thread, and the products go on from it. That memory is the block's, for one head after the other:
// 132 T d fp32, 10 MB at T = 256 and 39 MB at 1024, so it stays in L2. Every sum is in a fixed
// order that only T and d decide.
//
// While a warpgroup is at its exponentials, the other two may use the tensor cores; the scores of
// its next step run behind the products of this one. Clocks for 128 keys and 64 queries, d = 72:
//
//   tensor cores    5 products of 2 * 128 * 64 * 80 FLOP, 320 each                     1600
//   shared memory   operands 136 KB, dS 16, copies 21, what belongs to queries 8        1440
//   exponentials    8192 at 16 a clock                                                   512
//   one chain       4 products 640, about 400 instructions, two waits 200               1240
//   L2              q, dY 18 KB, dQ read and written 37 KB, at 38.8 bytes               1420
//
//   shared memory, d = 72   20 KB a tile: 2 each of keys and values; 21 KB a step's queries: 3;
//                           16 KB of dS: 2
//   registers a thread      32 scores, 32 of dP, 80 sums, 32 pairs of P and dS, 20 of v
//
// v is an operand from registers, since 64 x 16 numbers of shared memory for 64 x 64 results take
// both of them as long as the product; for k there are no registers left.
//
// A query beyond the last has exp2(-inf) = 0 for P; of a key beyond the last the score is -inf.
#include <cmath>

#include "cuda/attention_sm90.cuh"
#include "cuda/attention_sm90.h"
#include "cuda/kernels.h"
#include "cuda/tensor_map.h"

namespace dit::cuda::hopper {

namespace {

constexpr int kOwners = 2;  // warpgroups with keys of their own
constexpr int kThreads = (kOwners + 2) * kWarpgroup;
constexpr int kWarps = kWarpgroup / 32;
constexpr int kOwn = 64;  // keys of a warpgroup
constexpr int kKeys = kOwners * kOwn;
constexpr int kQueries = 64;
constexpr int kKeySlots = 2, kQuerySlots = 3, kGradientSlots = 2;
constexpr int kSteps = kQueries / kStep;

// Of a query, for P and dS: -logSumExp in powers of 2, and D.
using Numbers = float2;
// As copies see them: a matrix of bf16 with rows of 128 bytes.
constexpr int kNumbersARow = 128 / sizeof(Numbers);
constexpr int kNumbersBytes = kQueries * sizeof(Numbers);

template <int kD>
struct KeySlot {
  TileMemory<kD, kKeys> k, v;
};

template <int kD>
struct QuerySlot {
  TileMemory<kD, kQueries> q, dY;
  alignas(1024) char numbers[kNumbersBytes];
};

template <int kD>
struct Shared {
  KeySlot<kD> keys[kKeySlots];
  QuerySlot<kD> queries[kQuerySlots];
  // dS^T [keys, queries] in bf16, swizzled by 128 bytes.
  alignas(1024) char gradients[kGradientSlots][kKeys * kQueries * 2];
  uint64_t keysFull[kKeySlots], keysEmpty[kKeySlots];
  uint64_t queriesFull[kQuerySlots], queriesEmpty[kQuerySlots];
  uint64_t gradientsFull[kGradientSlots], gradientsEmpty[kGradientSlots];
};

struct Parameters {
  Bf16* dQkv;
  float4* partial;  // [blocks, queryTiles, kPartial, 128]: dQ of a block's head so far
  int rows, heads, tokens;
  int keyTiles, queryTiles;  // of a head
  float scale;               // 1 / sqrt(d)
};

struct Maps {
  CUtensorMap qkvPanel, qkvRest, dYPanel, dYRest, numbers;
};

// Numbers of dQ that a thread keeps between tiles of keys, in fours: of the second panel's 16
// columns, 8 exist.
template <int kD>
constexpr int kPartial = kD / 8;

// ---------------------------------------------------------------- copies

template <int kD>
__device__ void produce(const Maps& maps, const Parameters& p, Shared<kD>& shared) {
  Ring<kKeySlots> keys;
  Ring<kQuerySlots> queries;
  const int heads = p.rows * p.heads;
  for (int at = static_cast<int>(blockIdx.x); at < heads; at += static_cast<int>(gridDim.x)) {
    const int row = at / p.heads, head = at % p.heads;
    const auto loadQkv = [&](auto& tile, int first, uint64_t* barrier, int part, int token) {
      loadRows(tile, first, &maps.qkvPanel, &maps.qkvRest, barrier, part * p.heads + head, token,
               row);
    };
    for (int keyTile = 0; keyTile < p.keyTiles; keyTile++) {
      KeySlot<kD>& slot = shared.keys[keys.slot];
      uint64_t* const full = &shared.keysFull[keys.slot];
      mbarrierWait(&shared.keysEmpty[keys.slot], keys.phase ^ 1);
      mbarrierArriveExpect(full, 2 * TileMemory<kD, kKeys>::kBytes);
      for (int first = 0; first < kKeys; first += kQueries) {  // a box is as long as for queries
        loadQkv(slot.k, first, full, 1, keyTile * kKeys + first);
        loadQkv(slot.v, first, full, 2, keyTile * kKeys + first);
      }
      keys.advance();
      for (int tile = 0; tile < p.queryTiles; tile++) {
        QuerySlot<kD>& to = shared.queries[queries.slot];
        uint64_t* const barrier = &shared.queriesFull[queries.slot];
        mbarrierWait(&shared.queriesEmpty[queries.slot], queries.phase ^ 1);
        mbarrierArriveExpect(barrier, 2 * TileMemory<kD, kQueries>::kBytes + kNumbersBytes);
        loadQkv(to.q, 0, barrier, 0, tile * kQueries);
        loadRows(to.dY, 0, &maps.dYPanel, &maps.dYRest, barrier, head, tile * kQueries, row);
        loadBox2(to.numbers, &maps.numbers, barrier, 0,
                 (at * p.queryTiles + tile) * (kQueries / kNumbersARow));
        queries.advance();
      }
    }
  }
}

// ---------------------------------------------------------------- P, dS, dK and dV

// A thread's place in a warpgroup's sums, and what it does there.
struct Place {
  int warp, lane, g, q;

  __device__ __forceinline__ Place() {
    const int thread = static_cast<int>(threadIdx.x);
    warp = thread % kWarpgroup / 32;
    lane = thread % 32;
    g = lane / 4;
    q = lane % 4;
  }
  // The first of the thread's two rows of 64; the second is 8 on.
  __device__ __forceinline__ int row() const { return warp * 16 + g; }
  __device__ __forceinline__ void release(uint64_t* barrier) const {
    if (lane == 0) mbarrierArrive(barrier);
  }
};

// The numbers of queries 8 j + 2 q and the next, which the copy has swizzled.
__device__ __forceinline__ float4 numbersOf(const char* numbers, const Place& place, int j) {
  const int row = j / 2;
  return *reinterpret_cast<const float4*>(numbers + row * 128 + j % 2 * 64 +
                                          ((place.q ^ row) << 4));
}

// Scores [keys, queries] become P, products of dY and v dS, both rounded to bf16, as operands of
// the next products: the two rows of a result are those of an operand. dS also goes to `to`, where
// a row of 128 bytes has a key's queries.
__device__ __forceinline__ void differentiate(const float (&scores)[kQueries / 2],
                                              const float (&dP)[kQueries / 2], float scale,
                                              const char* numbers, char* to, const Place& place,
                                              uint32_t (&weights)[kSteps][4],
                                              uint32_t (&gradients)[kSteps][4]) {
#pragma unroll
  for (int j = 0; j < kQueries / 8; j++) {
    const float4 n = numbersOf(numbers, place, j);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int at = 4 * j + 2 * half, part = j % 2 * 2 + half;
      const float a = exp2Approx(fmaf(scores[at], scale, n.x));
      const float b = exp2Approx(fmaf(scores[at + 1], scale, n.z));
      weights[j / 2][part] = packBf16(a, b);
      const uint32_t pair = packBf16(a * (dP[at] - n.y), b * (dP[at + 1] - n.w));
      gradients[j / 2][part] = pair;
      *reinterpret_cast<uint32_t*>(to + half * 8 * 128 + ((j ^ place.g) << 4)) = pair;
    }
  }
}

// 64 tokens of q, k or v's (part 0, 1, 2) gradient.
template <int kD>
__device__ __forceinline__ void storeGradient(const Parameters& p, int head, int part, int token,
                                              const Sums<kD>& sums, float factor) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (token + 8 * half >= p.tokens) break;
    const int64_t row = static_cast<int64_t>(head / p.heads) * p.tokens + token + 8 * half;
    sums.storeRow(p.dQkv + ((row * 3 + part) * p.heads + head % p.heads) * kD, half, factor);
  }
}

template <int kD>
__device__ void differentiateKeys(const Parameters& p, Shared<kD>& shared, int owner) {
  const Place place;
  const float toPowerOf2 = p.scale * 1.44269504088896340736f;
  Ring<kKeySlots> keys;
  Ring<kQuerySlots> queries;
  Ring<kGradientSlots> gradientSlots;
  float scores[kQueries / 2], dP[kQueries / 2];
  Sums<kD> dK, dV;
  RowFragments<kD> v;

  const auto loadKeys = [&] {
    KeySlot<kD>& slot = shared.keys[keys.slot];
    mbarrierWait(&shared.keysFull[keys.slot], keys.phase);
    v.load(slot.v, owner * kOwn);
  };
  const auto startScores = [&] {
    wgmmaFence();
    multiplyRows(scores, shared.keys[keys.slot].k, owner * kOwn, shared.queries[queries.slot].q);
    wgmmaCommit();
  };
  const auto startProducts = [&] {
    wgmmaFence();
    v.multiply(dP, shared.queries[queries.slot].dY);
    wgmmaCommit();
  };

  const int heads = p.rows * p.heads;
  int head = static_cast<int>(blockIdx.x), keyTile = 0, queryTile = 0;
  loadKeys();
  mbarrierWait(&shared.queriesFull[0], 0);
  startScores();
  startProducts();
  for (;;) {
    const QuerySlot<kD>& slot = shared.queries[queries.slot];
    uint64_t* const slotEmpty = &shared.queriesEmpty[queries.slot];
    const bool lastOfTile = queryTile == p.queryTiles - 1;
    const bool lastOfHead = lastOfTile && keyTile == p.keyTiles - 1;
    const int key = keyTile * kKeys + owner * kOwn + place.row();
    wgmmaWait<0>();
    wgmmaTouch(scores);
    wgmmaTouch(dP);
    if (lastOfTile) place.release(&shared.keysEmpty[keys.slot]);

    if ((keyTile + 1) * kKeys > p.tokens) {
#pragma unroll
      for (int i = 0; i < kQueries / 2; i++) {
        if (key + i / 2 % 2 * 8 >= p.tokens) scores[i] = -INFINITY;
      }
    }
    mbarrierWait(&shared.gradientsEmpty[gradientSlots.slot], gradientSlots.phase ^ 1);
    uint32_t weights[kSteps][4], gradients[kSteps][4];
    differentiate(
        scores, dP, toPowerOf2, slot.numbers,
        shared.gradients[gradientSlots.slot] + (owner * kOwn + place.row()) * 128 + place.q * 4,
        place, weights, gradients);
    fenceForProducts();
    __syncwarp();
    place.release(&shared.gradientsFull[gradientSlots.slot]);
    gradientSlots.advance();

    wgmmaFence();
    dV.add(weights, slot.dY, queryTile > 0);
    dK.add(gradients, slot.q, queryTile > 0);
    wgmmaCommit();

    // The next step's scores follow on their heels. Behind the last step come its own once more,
    // unused, since products that only sometimes run would be waited for one by one.
    const bool more = !lastOfHead || head + static_cast<int>(gridDim.x) < heads;
    if (more) {
      queries.advance();
      mbarrierWait(&shared.queriesFull[queries.slot], queries.phase);
      if (lastOfTile) {
        keys.advance();
        loadKeys();
      }
    }
    startScores();
    wgmmaWait<1>();
    dK.touch();
    dV.touch();
    place.release(slotEmpty);
    startProducts();
    if (lastOfTile) {
      storeGradient(p, head, 1, key, dK, p.scale);
      storeGradient(p, head, 2, key, dV, 1.0f);
    }
    if (!more) break;
    if (!lastOfTile) {
      queryTile++;
    } else {
      queryTile = 0;
      if (lastOfHead) head += static_cast<int>(gridDim.x);
      keyTile = lastOfHead ? 0 : keyTile + 1;
    }
  }
  wgmmaWait<0>();
}

// ---------------------------------------------------------------- dQ

template <int kD>
__device__ void differentiateQueries(const Parameters& p, Shared<kD>& shared) {
  const Place place;
  Ring<kKeySlots> keys;
  Ring<kGradientSlots> gradients;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  float4* const own =
      p.partial + static_cast<int64_t>(blockIdx.x) * p.queryTiles * (kPartial<kD> * kWarpgroup) +
      thread;
  const int heads = p.rows * p.heads;
  for (int head = static_cast<int>(blockIdx.x); head < heads; head += static_cast<int>(gridDim.x)) {
    for (int keyTile = 0; keyTile < p.keyTiles; keyTile++) {
      mbarrierWait(&shared.keysFull[keys.slot], keys.phase);
      for (int queryTile = 0; queryTile < p.queryTiles; queryTile++) {
        float4* const partial = own + queryTile * (kPartial<kD> * kWarpgroup);
        Sums<kD> dQ = {};
        if (keyTile > 0) {
#pragma unroll
          for (int i = 0; i < kPartial<kD>; i++) {
            float* const to = i < kPanel / 8 ? &dQ.panel[4 * i] : &dQ.rest[0];
            const float4 x = partial[i * kWarpgroup];
            to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
          }
        }
        mbarrierWait(&shared.gradientsFull[gradients.slot], gradients.phase);
        dQ.touch();  // each in a register of its own before the fence, the zeros, too
        wgmmaFence();
        dQ.add(shared.gradients[gradients.slot], shared.keys[keys.slot].k);
        wgmmaCommit();
        wgmmaWait<0>();
        dQ.touch();
        place.release(&shared.gradientsEmpty[gradients.slot]);
        gradients.advance();
        if (keyTile == p.keyTiles - 1) {
          storeGradient(p, head, 0, queryTile * kQueries + place.row(), dQ, p.scale);
        } else {
#pragma unroll
          for (int i = 0; i < kPartial<kD>; i++) {
            const float* const from = i < kPanel / 8 ? &dQ.panel[4 * i] : &dQ.rest[0];
            partial[i * kWarpgroup] = make_float4(from[0], from[1], from[2], from[3]);
          }
        }
      }
      place.release(&shared.keysEmpty[keys.slot]);
      keys.advance();
    }
  }
}

template <int kD>
__global__ void __launch_bounds__(kThreads, 1)
    attentionBackwardKernel(const __grid_constant__ Maps maps,
                            const __grid_constant__ Parameters parameters) {
  auto& shared = *reinterpret_cast<Shared<kD>*>(sharedMemory());
  const int thread = static_cast<int>(threadIdx.x), warpgroup = thread / kWarpgroup;
  if (thread == 0) {
    for (int i = 0; i < kKeySlots; i++) {
      mbarrierInit(&shared.keysFull[i], 1);
      mbarrierInit(&shared.keysEmpty[i], (kOwners + 1) * kWarps);
    }
    for (int i = 0; i < kQuerySlots; i++) {
      mbarrierInit(&shared.queriesFull[i], 1);
      mbarrierInit(&shared.queriesEmpty[i], kOwners * kWarps);
    }
    for (int i = 0; i < kGradientSlots; i++) {
      mbarrierInit(&shared.gradientsFull[i], kOwners * kWarps);
      mbarrierInit(&shared.gradientsEmpty[i], kWarps);
    }
    mbarrierInitFence();
  }
  awaitPrevious();
  __syncthreads();
  // 512 registers for one thread of each warpgroup.
  if (warpgroup < kOwners) {
    growRegisters<208>();
    differentiateKeys<kD>(parameters, shared, warpgroup);
  } else if (warpgroup == kOwners) {
    shrinkRegisters<72>();
    differentiateQueries<kD>(parameters, shared);
  } else {
    shrinkRegisters<24>();
    if (thread % kWarpgroup == 0) produce<kD>(maps, parameters, shared);
  }
}

// ---------------------------------------------------------------- D

struct NumbersParameters {
  const Bf16 *y, *dY;
  const float* logSumExp;
  Numbers* numbers;  // [R, heads, paddedTokens]
  int heads, tokens, paddedTokens;
  int64_t count;  // R paddedTokens heads
};

// A thread has a token of one head, neighbours have neighbouring heads: memory is read in order.
template <int kD>
__global__ void __launch_bounds__(128) numbersKernel(NumbersParameters p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  awaitPrevious();
  if (i >= p.count) return;
  const int head = static_cast<int>(i % p.heads);
  const int64_t rowToken = i / p.heads, row = rowToken / p.paddedTokens;
  const int token = static_cast<int>(rowToken % p.paddedTokens);
  Numbers result = {-INFINITY, 0};
  if (token < p.tokens) {
    const int64_t from = ((row * p.tokens + token) * p.heads + head) * kD;
    const auto* const y = reinterpret_cast<const uint4*>(p.y + from);
    const auto* const dY = reinterpret_cast<const uint4*>(p.dY + from);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kD / 8; j++) {
      const uint4 a = y[j], b = dY[j];
      const auto add = [&](uint32_t a, uint32_t b) {
        sum = fmaf(lowBf16(a), lowBf16(b), sum);
        sum = fmaf(highBf16(a), highBf16(b), sum);
      };
      add(a.x, b.x), add(a.y, b.y), add(a.z, b.z), add(a.w, b.w);
    }
    constexpr float kLog2E = 1.44269504088896340736f;
    result = {-p.logSumExp[(row * p.heads + head) * p.tokens + token] * kLog2E, sum};
  }
  p.numbers[(row * p.heads + head) * p.paddedTokens + token] = result;
}

template <int kD>
void run(Context& context, const AttentionBackwardArgs& args) {
  const int64_t rows = args.y.shape[0], tokens = args.y.shape[1], heads = args.heads;
  const int64_t all = rows * heads, keyTiles = divideUp(tokens, kKeys);
  const int64_t queryTiles = divideUp(tokens, kQueries), padded = queryTiles * kQueries;
  const int64_t blocks = std::min<int64_t>(all, context.multiprocessors);
  const int64_t numbersBytes = divideUp(all * padded * sizeof(Numbers), 256) * 256;
  const int64_t partialBytes =
      keyTiles > 1 ? blocks * queryTiles * kPartial<kD> * kWarpgroup * sizeof(float4) : 0;
  char* const scratch =
      static_cast<char*>(context.scratch(static_cast<size_t>(numbersBytes + partialBytes)));

  const NumbersParameters numbers = {.y = args.y.as<Bf16>(),
                                     .dY = args.dY.as<Bf16>(),
                                     .logSumExp = args.logSumExp.as<float>(),
                                     .numbers = reinterpret_cast<Numbers*>(scratch),
                                     .heads = static_cast<int>(heads),
                                     .tokens = static_cast<int>(tokens),
                                     .paddedTokens = static_cast<int>(padded),
                                     .count = all * padded};
  launch(context, numbersKernel<kD>, dim3(static_cast<unsigned>(divideUp(numbers.count, 128))),
         dim3(128), 0, numbers);

  const auto map = [&](const void* data, int64_t heads, int columns) {
    return headsMap(data, rows, tokens, heads, kD, kQueries, columns);
  };
  Maps maps = {.qkvPanel = map(args.qkv.data, 3 * heads, kPanel),
               .qkvRest = {},
               .dYPanel = map(args.dY.data, heads, kPanel),
               .dYRest = {},
               .numbers = matrixMap(scratch, DType::BF16, all * padded / kNumbersARow, kBoxColumns,
                                    kBoxColumns, kQueries / kNumbersARow)};
  if constexpr (Sums<kD>::kHasRest) {
    maps.qkvRest = map(args.qkv.data, 3 * heads, kRestPanel);
    maps.dYRest = map(args.dY.data, heads, kRestPanel);
  }
  const Parameters parameters = {
      .dQkv = args.dQkv.as<Bf16>(),
      .partial = reinterpret_cast<float4*>(scratch + numbersBytes),
      .rows = static_cast<int>(rows),
      .heads = static_cast<int>(heads),
      .tokens = static_cast<int>(tokens),
      .keyTiles = static_cast<int>(keyTiles),
      .queryTiles = static_cast<int>(queryTiles),
      .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(kD)))};
  launch(context, attentionBackwardKernel<kD>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
         sizeof(Shared<kD>), maps, parameters);
}

}  // namespace

bool attentionBackwardFits(const AttentionBackwardArgs& args) {
  const int64_t d = args.y.shape[2] / args.heads;
  const auto aligned = [](const Tensor& x, uintptr_t to) {
    return reinterpret_cast<uintptr_t>(x.data) % to == 0;
  };
  return args.qkv.dtype == DType::BF16 && (d == 64 || d == 72) && aligned(args.qkv, 16) &&
         aligned(args.y, 16) && aligned(args.dY, 16) && aligned(args.dQkv, 4);
}

void attentionBackward(Context& context, const AttentionBackwardArgs& args) {
  args.y.shape[2] / args.heads == 64 ? run<64>(context, args) : run<72>(context, args);
}

}  // namespace dit::cuda::hopper
