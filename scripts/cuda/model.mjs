// What kernels on an H100 should take, on paper: a floor from FLOPs and bytes, and a prediction from
// how our kernels go about it. Nothing here was measured with our kernels; roofline.mjs has the shapes.

/** Measured on an H100 80GB before this project's kernels existed, or documented. */
export const machine = {
  multiprocessors: 132,
  bf16: 798e12, // FLOP/s of a large matrix product, measured
  tf32: 399e12, // half
  fp32: 67e12, // nominal
  memory: 3.0e12, // bytes/s of a device copy, measured
  flopPerClock: 4096, // of a multiprocessor's tensor cores, bf16 with wgmma
  // mma.sync reaches this part of wgmma's rate (published microbenchmarks of Hopper).
  mmaSync: 0.62,
  l2: 38.8, // bytes a clock that L2 gives each multiprocessor: 5120 in all
  shared: 128, // bytes a clock of shared memory, of a multiprocessor
  special: 16, // exponentials a clock, of a multiprocessor
  issue: 4, // instructions of a warp a clock, of a multiprocessor
  reach: 0.92, // of the copy's bandwidth that a kernel with mixed reads and writes reaches
  l2Bytes: 50e6,
}
// The clock at which all tensor cores give the measured rate: power holds it below the nominal one.
machine.clock = machine.bf16 / (machine.multiprocessors * machine.flopPerClock)

const assumed = {
  launch: 1.0e-6, // from one kernel of a graph to the next
  hidden: 0.8e-6, // of it, where the next kernel starts early (programmatic dependent launch)
  fill: 1.5e-6, // until a persistent kernel's first products, and after its last
  latency: 650, // clocks of a read that misses L1
}

export { assumed }

const up = (a, b) => Math.ceil(a / b)

/** { flops, bytes, floor } of an operation; rate: of the unit that the precision asks for. */
export function floor({ flops = 0, bytes }, rate = machine.bf16) {
  return Math.max(flops / rate, bytes / machine.memory)
}

// ---- products of warpgroups (gemm_sm90.cuh, linear_sm90.cu) ----

// Instructions of a warp for four numbers of the epilogue, counted in the machine code (the last
// three estimated), and latencies of memory that a tile waits for: what it reads first comes during
// the products, the rest a batch ahead.
const epilogues = {
  bias: { perFour: 25, latencies: 0.5 },
  gelu: { perFour: 62, latencies: 0.5 },
  geluExact: { perFour: 385, latencies: 0.5 }, // results in fp32
  residual: { perFour: 57, latencies: 1 },
  geluGradient: { perFour: 85, latencies: 1 },
  store: { perFour: 18, latencies: 0 },
  add: { perFour: 24, latencies: 1 },
}

/** tileWidth of linear_sm90.cu. */
export function tileWidth(m, n) {
  const widths = [
    [192, 1.0],
    [128, 0.9],
    [64, 0.6],
  ]
  const time = ([width, share]) =>
    (up(up(m, 128) * up(n, width), machine.multiprocessors) * width) / share
  return widths.reduce((best, each) => (time(each) < time(best) ? each : best))[0]
}

/** withShape of linear_sm90.cu. */
function productionShape(m, n) {
  const tileN = tileWidth(m, n)
  return {
    tileM: 128,
    tileN,
    cluster: m > 512 && tileN > 64 ? 2 : 1,
    stages: Math.min(8, Math.floor((226 << 10) / ((128 + tileN) * 128))),
    turns: false,
  }
}

/**
 * y [m, n] over k, with an epilogue; `splits`: parts of k; `shape`: as in linear_candidates.h; `bits`: 16
 * (bf16) or 32 (TF32), of which a step has half as many numbers at half the rate.
 */
export function hopperProduct({
  m,
  n,
  k,
  epilogue = 'store',
  splits = 1,
  shape = productionShape(m, n),
  bits = 16,
}) {
  const { tileM, tileN, cluster, stages, turns } = shape
  const tiles = up(m, tileM * cluster) * cluster * up(n, tileN) * splits
  const busy = Math.min(tiles, machine.multiprocessors)
  const rounds = up(tiles, machine.multiprocessors)
  const matrix = (tileM * tileN * 64 * 2) / machine.flopPerClock
  // Clocks of a step: its products, or its bytes from L2, of which idle multiprocessors leave more.
  const l2 = (machine.l2 * machine.multiprocessors) / busy
  const fromL2 = ((tileM + tileN / cluster) * 128) / l2
  const step = Math.max(matrix, fromL2)
  const steps = up(up(k, 1024 / bits), splits)
  const { perFour, latencies } = epilogues[epilogue]
  const blocks = tileM / 64 / (turns ? 1 : 2) // of 64 rows, a warpgroup's
  const own = blocks * ((tileN / 8) * perFour + latencies * assumed.latency)
  // One warpgroup's epilogue runs beside the other's products: up to a ring of stages ahead, or all
  // of a tile where they take turns.
  const exposed = turns
    ? Math.max(0, own - steps * step)
    : 2 * Math.max(0, own - (stages * step) / 2)
  const tile = steps * step + exposed + (rounds === 1 ? own : 0)
  const flops = 2 * m * n * k
  const compute = (rounds * tile) / machine.clock
  return {
    flops,
    compute,
    // How full the last round is, the share of a step that waits for L2, and of a tile its epilogue.
    fill: tiles / (rounds * machine.multiprocessors),
    note:
      `${tileM}×${tileN}${cluster > 1 ? ' ×2' : ''}, ${tiles} tiles, ${rounds} round${rounds > 1 ? 's' : ''}` +
      `${fromL2 > matrix ? `, L2 ${(fromL2 / matrix).toFixed(2)}×` : ''}` +
      `${exposed > 0 ? `, epilogue +${Math.round((100 * exposed) / (steps * step))} %` : ''}`,
  }
}

/** A convolution as a product, `m` pixels: the shape that conv2d of conv_sm90.cu takes. */
export function hopperConvolution({ m, n, k, epilogue }) {
  const sizes = [
    { tileM: 256, tileN: 128, share: 1.0 },
    { tileM: 128, tileN: 128, share: 0.85 },
    { tileM: 128, tileN: 64, share: 0.6 },
  ]
  const time = ({ tileM, tileN, share }) =>
    (up(up(m, tileM) * up(n, tileN), machine.multiprocessors) * tileM * tileN) / share
  const { tileM, tileN } = sizes.reduce((best, each) => (time(each) < time(best) ? each : best))
  const stages = Math.min(8, Math.floor((226 << 10) / ((tileM + tileN) * 128)))
  const shape = { tileM, tileN, cluster: tileN > 64 ? 2 : 1, stages, turns: false }
  return hopperProduct({ m, n, k, epilogue, shape })
}

// ---- products of warps (mma.sync) ----

/**
 * tile: { m, n, warpM, warpN, blocks } as in the kernels; bits: 16 (bf16) or 32 (TF32). Fragments come
 * from shared memory: a warp reads (warpM + warpN) lines for warpM warpN sums.
 */
export function warpProduct({ m, n, k, tile, bits = 16, images = 1, splits = 1 }) {
  const peak = machine.flopPerClock * machine.mmaSync * (bits === 32 ? 0.5 : 1)
  const bytesPerFlop = ((tile.warpM + tile.warpN) * (bits / 8)) / (2 * tile.warpM * tile.warpN)
  const rate = Math.min(peak, machine.shared / bytesPerFlop)
  const tiles = images * up(m, tile.m) * up(n, tile.n) * splits
  const slots = machine.multiprocessors * tile.blocks
  const rounds = up(tiles, slots)
  // What barriers, copies and epilogues leave of the lesser of the two.
  const reached = 0.75
  const clocks = (rounds * tile.blocks * tile.m * tile.n * 2 * up(k, splits)) / (rate * reached)
  return {
    flops: 2 * images * m * n * k,
    compute: clocks / machine.clock,
    fill: tiles / (rounds * slots),
    note:
      `mma.sync ${tile.m}×${tile.n}, ${tiles} tiles, ${rounds} round${rounds > 1 ? 's' : ''}, ` +
      `at most ${Math.round((rate * machine.multiprocessors * machine.clock) / 1e12)} TFLOP/s` +
      `${rate < peak ? ' by shared memory' : ''}`,
  }
}

// ---- attention ----

/** Forward on Hopper (attention_sm90.cu): clocks of a tile of 128 queries and 128 keys. */
export function hopperAttention({ rows, tokens, heads, d }) {
  const padded = up(d, 16) * 16
  const tiles = up(tokens, 128)
  const products = (2 * 2 * 128 * 128 * padded) / machine.flopPerClock
  const instructions = d > 64 ? 648 : 580 // of a warp in the loop, from the machine code
  const exponentials = (128 * 128) / machine.special
  // A warpgroup alone: its products, then its softmax, one warp on each scheduler.
  const chain = products / 2 + Math.max(instructions, exponentials / 2) + 150
  const issue = (2 * 4 * instructions) / machine.issue
  const tile = Math.max(products, chain, issue, exponentials)
  const pieces = rows * heads * tiles
  const rounds = up(pieces, machine.multiprocessors)
  const perPiece = tiles * tile + 300 // the queries' wait and the results
  const flops = 4 * rows * heads * tokens * tokens * d
  const limit =
    tile === products ? 'products' : tile === chain ? 'products, then softmax' : 'softmax'
  return {
    flops,
    compute: (rounds * perPiece) / machine.clock,
    fill: pieces / (rounds * machine.multiprocessors),
    note: `${pieces} pieces, ${rounds} rounds, ${Math.round(tile)} clocks a tile: ${limit}`,
  }
}

/**
 * Backward on Hopper (attention_backward_sm90.cu): a block has a head at a time; clocks of a step, 128
 * keys and 64 queries.
 */
export function hopperAttentionBackward({ rows, tokens, heads, d }) {
  const padded = up(d, 16) * 16
  const keyTiles = up(tokens, 128)
  const queryTiles = up(tokens, 64)
  const products = (5 * 2 * 128 * 64 * padded) / machine.flopPerClock
  // Bytes of shared memory. An operand of 64 rows is 2 KB for 16 of the products' dimension.
  const operands =
    2 * (padded / 16) * (4096 + 2048) + // q k^T from it alone, v dY^T with v in registers, twice
    2 * 2 * 64 * padded * 2 + // dY and q for dV and dK
    8 * (2048 + 16 * padded * 2) // dS k
  const shared = (operands + 128 * 64 * 2 + 2 * 64 * padded * 2 + 8 * 8 * 128) / machine.shared
  const exponentials = (128 * 64) / machine.special
  // A warpgroup with keys: its four products, then its part of P and dS. From the machine code,
  // without what it does once in a tile of keys.
  const instructions = 390
  const chain = (products * 4) / 10 + instructions + 200
  const issue = (2 * 4 * instructions) / machine.issue
  const partial = (2 * 64 * d * 4 * (keyTiles - 1)) / keyTiles // of dQ, to and from L2
  const l2 = (2 * 64 * d * 2 + (2 * 128 * d * 2) / queryTiles + partial) / machine.l2
  const step = Math.max(products, shared, chain, issue, exponentials, l2)
  // What three warpgroups that wait for one another leave of it: published kernels of this kind.
  const reached = 0.65
  const perTile = 500 // results of dK and dV
  const rounds = up(rows * heads, machine.multiprocessors)
  const clocks = rounds * keyTiles * ((queryTiles * step) / reached + perTile)
  // D and what else is a query's come first, in a pass of their own.
  const before = (rows * tokens * heads * (2 * d * 2 + 12)) / (machine.memory * machine.reach)
  return {
    flops: 10 * rows * heads * tokens * tokens * d,
    compute: clocks / machine.clock + before,
    fill: (rows * heads) / (rounds * machine.multiprocessors),
    note:
      `${rows * heads} heads, ${rounds} round${rounds > 1 ? 's' : ''}, ${Math.round(step)} clocks a step, ` +
      `${reached} of it reached; L2 ${(l2 / step).toFixed(2)}×, shared memory ${(shared / step).toFixed(2)}×`,
  }
}

/** One vector unit, for what is bound by memory. */
export function pass(passes = 1) {
  return { flops: 0, compute: 0, fill: 1, note: passes > 1 ? `${passes} kernels` : '' }
}

/**
 * { floor, time, bound } of an operation that moves `bytes`, and `again` what it reads twice. kernels:
 * how many it starts.
 */
export function predict({ bytes, again = 0, kernels = 1, rate = machine.bf16, ...how }) {
  const memory = (bytes + again) / (machine.memory * machine.reach)
  const time =
    Math.max(how.compute, memory) +
    kernels * (assumed.launch + (how.compute > 0 ? assumed.fill : 0))
  const bound = how.compute > memory ? 'compute' : 'memory'
  return { ...how, bytes, kernels, time, bound, floor: floor({ flops: how.flops, bytes }, rate) }
}
