// Writes bench/ROOFLINE.md: for DiT and the VAE on an H100, every operation's FLOPs, bytes, floor and
// predicted time, and what that makes of the models. scripts/cuda/model.mjs has the machine.
//
//   node scripts/roofline.mjs            prints the page
//   node scripts/roofline.mjs --write    writes it
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  assumed,
  hopperAttention,
  hopperAttentionBackward,
  hopperConvolution,
  hopperProduct,
  machine,
  pass,
  predict,
  warpProduct,
} from './cuda/model.mjs'
import { linearPredictions } from './cuda/variants.mjs'

const root = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '')

const models = {
  'DiT-XL/2': { depth: 28, c: 1152, heads: 16 },
  'DiT-S/2': { depth: 12, c: 384, heads: 6 },
}
const patch = 2
const channels = 4
const outChannels = 8

// ---- operations --------------------------------------------------------------------------------

/** One of the four products of a block, its weights included, which are read once. */
function linear(name, m, n, k, epilogue, act = 2) {
  const reads = m * k * act + n * k * act + (epilogue === 'residual' ? m * n * act : 0)
  return {
    name: `linear.${name}`,
    shape: `${m}×${n}×${k}`,
    ...predict({ bytes: reads + m * n * act, ...hopperProduct({ m, n, k, epilogue }) }),
  }
}

/** The same in TF32; a trained weight's rounded copy is a kernel of its own, beside it. */
function linearTf32(name, m, n, k, epilogue) {
  const bytes = 4 * (m * k + n * k + m * n * (epilogue === 'residual' ? 2 : 1))
  const how = hopperProduct({ m, n, k, epilogue, bits: 32 })
  return {
    name: `linear.${name}, TF32`,
    shape: `${m}×${n}×${k}`,
    ...predict({ bytes, rate: machine.tf32, ...how }),
  }
}

function productsInTf32({ c }, m) {
  return [
    linearTf32('qkv', m, 3 * c, c, 'bias'),
    linearTf32('proj', m, c, c, 'residual'),
    linearTf32('fc1', m, 4 * c, c, 'geluExact'),
    linearTf32('fc2', m, c, 4 * c, 'residual'),
    {
      name: 'a trained fc1, rounded',
      shape: `${4 * c}×${c}`,
      ...predict({ bytes: 8 * 4 * c * c, ...pass() }),
    },
  ]
}

function norm(name, m, c, from = 2) {
  return {
    name,
    shape: `${m}×${c}`,
    ...predict({ bytes: m * c * (from + 2), ...pass() }),
  }
}

function attention(rows, tokens, heads, d) {
  return {
    name: 'attention',
    shape: `${rows}×${tokens}×${heads}×${d}`,
    ...predict({
      bytes: rows * tokens * heads * d * 4 * 2,
      ...hopperAttention({ rows, tokens, heads, d }),
    }),
  }
}

/** A block's forward: [times, operation]. stream: bytes of a number of the residual stream. */
function block({ c, heads }, rows, tokens, stream) {
  const m = rows * tokens
  return [
    norm('layerNormModulate', m, c, stream),
    linear('qkv', m, 3 * c, c, 'bias'),
    attention(rows, tokens, heads, c / heads),
    linear('proj', m, c, c, 'residual'),
    norm('layerNormModulate', m, c, stream),
    linear('fc1', m, 4 * c, c, 'gelu'),
    linear('fc2', m, c, 4 * c, 'residual'),
  ]
}

/** dX and dWeight of one product: the sum over m rows is made in parts, which are added. */
function linearBackward(name, m, n, k, epilogue = 'store') {
  const parts = n * k < 2e6 ? 2 : 3 // chooseParts for XL/2's four
  const x = hopperProduct({ m, n: k, k: n, epilogue })
  const w = hopperProduct({ m: n, n: k, k: m, splits: parts })
  const bytes =
    2 * (m * n * 2 + m * k * 2) +
    n * k * 2 +
    n * k * 4 * (2 * parts + 2) +
    (epilogue === 'geluGradient' ? 2 * m * k * 2 : 0)
  const both = {
    flops: x.flops + w.flops,
    compute: x.compute + w.compute,
    fill: Math.min(x.fill, w.fill),
    note: `dX ${x.note}; dW ${w.note}, ${parts} parts`,
  }
  return {
    name: `linear.${name}.backward`,
    shape: `${m}×${n}×${k}`,
    ...predict({ bytes: bytes + m * n * 2, kernels: 5, ...both }), // dBias reads dY again
  }
}

function blockBackward({ c, heads }, rows, tokens) {
  const m = rows * tokens
  const d = c / heads
  const normBackward = {
    name: 'layerNormModulateBackward',
    shape: `${m}×${c}`,
    ...predict({ bytes: m * c * (4 + 2 + 4 + 4), kernels: 2, ...pass(2) }),
  }
  const gateBackward = {
    name: 'gateBackward',
    shape: `${m}×${c}`,
    ...predict({ bytes: m * c * (4 + 2 + 2), kernels: 2, ...pass(2) }),
  }
  const attentionBackward = {
    name: 'attention.backward',
    shape: `${rows}×${tokens}×${heads}×${d}`,
    ...predict({
      bytes: rows * tokens * c * 2 * (3 + 1 + 1 + 3),
      again: rows * tokens * c * 2, // dY
      kernels: 2,
      ...hopperAttentionBackward({ rows, tokens, heads, d }),
    }),
  }
  return [
    gateBackward,
    linearBackward('fc2', m, c, 4 * c, 'geluGradient'),
    linearBackward('fc1', m, 4 * c, c),
    normBackward,
    gateBackward,
    linearBackward('proj', m, c, c),
    attentionBackward,
    linearBackward('qkv', m, 3 * c, c),
    normBackward,
  ]
}

/** What stands around the blocks: patches, the last norm and product, and back to images. */
function ends({ c }, rows, tokens) {
  const m = rows * tokens
  const pixels = patch * patch
  return [
    { name: 'patchify', shape: '', ...predict({ bytes: m * pixels * channels * 6, ...pass() }) },
    linear('patch', m, c, pixels * channels, 'residual'),
    norm('layerNormModulate', m, c),
    linear('last', m, pixels * outChannels, c, 'bias'),
    {
      name: 'unpatchify',
      shape: '',
      ...predict({ bytes: m * pixels * outChannels * 8, ...pass() }),
    },
    { name: 'solverUpdate', shape: '', ...predict({ bytes: m * pixels * 60, ...pass() }) },
  ]
}

const sum = (list, of) => list.reduce((total, each) => total + of(each), 0)

/** A sampling step: rows = images, twice with guidance. */
function step(name, rows, tokens) {
  const config = models[name]
  const one = block(config, rows, tokens, 2)
  const around = ends(config, rows, tokens)
  // Modulation of 16 (timestep, class) pairs at a time, reading its weights once for each 16.
  const modulation = ((6 * config.depth + 2) * config.c * config.c * 2 * rows) / 16
  const modulate = {
    name: 'modulation (share of a step)',
    shape: '',
    ...predict({ bytes: modulation, kernels: ((config.depth + 6) * rows) / 16, ...pass() }),
  }
  return {
    block: one,
    around: [...around, modulate],
    time: config.depth * sum(one, (op) => op.time) + sum([...around, modulate], (op) => op.time),
    flops: config.depth * sum(one, (op) => op.flops),
    floor: config.depth * sum(one, (op) => op.floor) + sum([...around, modulate], (op) => op.floor),
  }
}

/** A training step of `images`, in micro-batches of `micro`. */
function training(name, images, micro, tokens, parameters) {
  const config = models[name]
  const forward = block(config, micro, tokens, 4)
  const backward = blockBackward(config, micro, tokens)
  const both = [...forward, ...backward]
  const times = images / micro
  const optimiser = {
    name: 'adamW, EMA, bf16 copy',
    shape: `${(parameters / 1e6).toFixed(0)} M`,
    ...predict({ bytes: 46 * parameters, kernels: 3, ...pass(3) }), // the norm reads gradients, too
  }
  const time = times * config.depth * sum(both, (op) => op.time) * 1.02 + optimiser.time
  return {
    forward,
    backward,
    optimiser,
    time,
    images,
    flops: times * config.depth * 3 * sum(forward, (op) => op.flops),
    floor: times * config.depth * sum(both, (op) => op.floor) + optimiser.floor,
  }
}

// ---- the VAE -----------------------------------------------------------------------------------

const convTiles = {
  small: { m: 64, n: 64, warpM: 32, warpN: 32, blocks: 4 },
  narrow: { m: 128, n: 16, warpM: 32, warpN: 16, blocks: 4 },
}

/** conv2d; upsampling is folded into four convolutions of 2 × 2 taps. */
function conv(side, from, to, kernel, { residual = false, upsample = false } = {}) {
  const pixels = side * side
  const phases = upsample ? 4 : 1
  const taps = upsample ? 4 : kernel * kernel
  const product = { n: to, k: taps * from }
  // On products of warpgroups where the channels permit (conv_sm90.cu).
  const how =
    from % 64 === 0 && to > 16
      ? hopperConvolution({ ...product, m: pixels, epilogue: residual ? 'residual' : 'bias' })
      : warpProduct({
          ...product,
          m: pixels / phases,
          images: phases,
          tile: convTiles[to <= 16 ? 'narrow' : 'small'],
        })
  const input = upsample ? pixels / 4 : pixels
  return {
    name: upsample ? 'conv2d, upsampled' : 'conv2d',
    shape: `${side}² ${from}→${to}, ${kernel}×${kernel}`,
    ...predict({
      bytes: (input * from + pixels * to * (residual ? 2 : 1) + to * from * taps) * 2,
      ...how,
    }),
  }
}

function groupNorm(side, c) {
  return {
    name: 'groupNormSilu',
    shape: `${side}² ${c}`,
    ...predict({ bytes: side * side * c * 2 * 3, kernels: 3, ...pass(3) }),
  }
}

function resnet(side, from, to) {
  return [
    groupNorm(side, from),
    conv(side, from, to, 3),
    groupNorm(side, to),
    ...(from === to ? [] : [conv(side, from, to, 1)]),
    conv(side, to, to, 3, { residual: true }),
  ]
}

function decode(pixels) {
  const side = pixels / 8
  const tokens = side * side
  const attentionFlops = 4 * tokens * tokens * 512
  // Four warps a head of 512, 16 queries each: every fragment serves one mma (attention.cu).
  const middle = {
    name: 'attention, one head of 512',
    shape: `${tokens}`,
    ...predict({
      bytes: tokens * 512 * 4 * 2,
      flops: attentionFlops,
      compute:
        attentionFlops / (0.3 * machine.bf16 * Math.min(1, tokens / 32 / machine.multiprocessors)),
      fill: Math.min(1, tokens / 32 / machine.multiprocessors),
      note: 'mma.sync, 32 queries a block',
    }),
  }
  const list = [
    conv(side, 4, 512, 3),
    ...resnet(side, 512, 512),
    groupNorm(side, 512),
    conv(side, 512, 1536, 1),
    middle,
    conv(side, 512, 512, 1, { residual: true }),
    ...resnet(side, 512, 512),
  ]
  const widths = [512, 512, 256, 128]
  let c = 512
  let at = side
  for (const [level, width] of widths.entries()) {
    for (let i = 0; i < 3; i++) {
      list.push(...resnet(at, c, width))
      c = width
    }
    if (level < 3) {
      at *= 2
      list.push(conv(at, c, c, 3, { upsample: true }))
    }
  }
  list.push(groupNorm(at, 128), conv(at, 128, 3, 3))
  list.push({ name: 'toRgb8', shape: '', ...predict({ bytes: at * at * 3 * 3, ...pass() }) })
  return list
}

// ---- the page ----------------------------------------------------------------------------------

const us = (seconds) => (seconds * 1e6).toFixed(seconds < 1e-4 ? 1 : 0)
const ms = (seconds) => (seconds * 1e3).toFixed(2)
const tera = (rate) => (rate / 1e12).toFixed(0)

function table(head, rows) {
  return [head, head.map((_, i) => (i === 0 || i === head.length - 1 ? '---' : '---:')), ...rows]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n')
}

function operations(list) {
  const seen = new Map()
  for (const op of list) {
    const key = `${op.name} ${op.shape}`
    const known = seen.get(key)
    seen.set(key, { op, times: (known?.times ?? 0) + 1 })
  }
  return table(
    [
      'operation',
      'shape',
      'times',
      'GFLOP',
      'MB',
      'FLOP/byte',
      'floor µs',
      'predicted µs',
      'TFLOP/s',
      'TB/s',
      'bound',
      'how',
    ],
    [...seen.values()].map(({ op, times }) => [
      op.name,
      op.shape,
      times,
      op.flops ? (op.flops / 1e9).toFixed(1) : '',
      (op.bytes / 1e6).toFixed(1),
      op.flops ? (op.flops / op.bytes).toFixed(0) : '',
      us(op.floor),
      us(op.time),
      op.flops ? tera(op.flops / op.time) : '',
      (op.bytes / op.time / 1e12).toFixed(2),
      op.bound,
      op.note,
    ]),
  )
}

function shapes() {
  const micro = (seconds) => (seconds * 1e6).toFixed(1)
  const lines = Object.entries(linearPredictions()).map(([label, { production, ...others }]) => {
    const best = Object.entries(others)
      .sort((a, b) => a[1] - b[1])
      .slice(0, 3)
      .map(([variant, seconds]) => `${variant.replace('linear=', '')}: ${micro(seconds)}`)
    return `| ${label} | ${micro(production)} | ${best.join(', ')} |`
  })
  return ['| product | production µs | others µs |', '| --- | ---: | --- |', ...lines].join('\n')
}

/** Rows of bench/KERNELS.md for the kernels that decide: registers, shared memory, warps. */
function occupancy() {
  const wanted = [
    /hopper::gemmKernel<hopper::GemmShape<128, 192, 2, 8, 1, false>, false, false, hopper::Whole<ForwardEpilogue/,
    /hopper::gemmKernel<hopper::GemmShape<128, 192, 2, 8, 1, false>, (false|true), true/,
    /hopper::attentionKernel<72>/,
    /hopper::attentionBackwardKernel<72>/,
    /^attentionKernel<AttentionShape<Bf16Product, 128, 4,/,
    /TensorSums<Bf16, conv::Tile<128, 128.*true>$/,
    /TensorSums<Bf16, conv::Tile<64, 64.*true>$/,
    /^productKernel<float, Tile<128, (128|192).*AlongK|^productKernel<float, Tile<128, 192/,
    /^layerNormKernel<Bf16, Bf16, 9>/,
    /^adamWKernel<4>/,
  ]
  const lines = readFileSync(path.join(root, 'bench/KERNELS.md'), 'utf8').split('\n')
  const rows = lines
    .filter((line) => line.startsWith('| ') && line.includes('| sm_90'))
    .map((line) => line.split(' | ').map((cell) => cell.replace(/^\| | \|$/g, '').trim()))
    .filter(([, kernel]) => wanted.some((pattern) => pattern.test(kernel.replaceAll('`', ''))))
    .map(([, kernel, arch, registers, shared, warps]) => [kernel, arch, registers, shared, warps])
  return table(['kernel', 'arch', 'registers', 'shared memory', 'warps of 64'], rows)
}

const xl256 = step('DiT-XL/2', 64, 256)
const xl512 = step('DiT-XL/2', 16, 1024)
const one256 = step('DiT-XL/2', 2, 256)
const one512 = step('DiT-XL/2', 2, 1024)
const s256 = step('DiT-S/2', 64, 256)
const trained = training('DiT-XL/2', 256, 64, 256, 675e6)
const decode256 = decode(256)
const decode512 = decode(512)

const linears = (list) => list.filter((op) => /^linear\.(qkv|proj|fc1|fc2)$/.test(op.name))
const weighted = (list) => sum(list, (op) => op.flops) / sum(list, (op) => op.time)
const find = (list, name) => list.find((op) => op.name === name)
const rateOf = (op) => op.flops / op.time

const attention1024 = find(xl512.block, 'attention')
const backward1024 = blockBackward(models['DiT-XL/2'], 16, 1024).find(
  (op) => op.name === 'attention.backward',
)
const total = (list) => sum(list, (op) => op.time)

function verdicts() {
  const bars = [
    [
      'four linears at 16 384 rows, weighted',
      weighted(linears(xl256.block)) / 1e12,
      600,
      'TFLOP/s',
      1,
    ],
    [
      'attention, T = 256, forward',
      rateOf(find(xl256.block, 'attention')) / 1e12,
      300,
      'TFLOP/s',
      1,
    ],
    ['attention, T = 1024, forward', rateOf(attention1024) / 1e12, 400, 'TFLOP/s', 1],
    ['attention, T = 1024, backward', rateOf(backward1024) / 1e12, 350, 'TFLOP/s', 1],
    [
      'XL/2 256, 32 images with guidance, of the matrix rate',
      (100 * xl256.flops) / xl256.time / machine.bf16,
      60,
      '%',
      1,
    ],
    ['XL/2 256, one image with guidance, a step', one256.time * 1e3, 1.6, 'ms', -1],
    ['training XL/2 256, batch 256', trained.images / trained.time, 500, 'images/s', 1],
  ]
  return table(
    ['what', 'predicted', 'bar', ''],
    bars.map(([what, value, bar, unit, sign]) => [
      what,
      `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ${unit}`,
      `${sign > 0 ? '≥' : '≤'} ${bar}`,
      sign * value >= sign * bar
        ? 'met'
        : `short by ${Math.abs((100 * (value - bar)) / bar).toFixed(0)} %`,
    ]),
  )
}

function totals() {
  const row = (name, { time, floor, flops }, images) => [
    name,
    ms(floor),
    ms(time),
    tera(flops / time),
    `${((100 * flops) / time / machine.bf16).toFixed(0)} %`,
    images ? (images / time).toFixed(0) : '',
  ]
  const vae = (list) => ({
    time: total(list),
    floor: sum(list, (op) => op.floor),
    flops: sum(list, (op) => op.flops),
  })
  return table(
    ['model', 'floor ms', 'predicted ms', 'TFLOP/s', 'of the matrix rate', 'images/s'],
    [
      row('DiT-XL/2 256, a step, 32 images with guidance', xl256),
      row('DiT-XL/2 512, a step, 8 images with guidance', xl512),
      row('DiT-XL/2 256, a step, one image with guidance', one256),
      row('DiT-XL/2 512, a step, one image with guidance', one512),
      row('DiT-S/2 256, a step, 32 images with guidance', s256),
      row('DiT-XL/2 256, training, batch 256 in micro-batches of 64', trained, trained.images),
      row('VAE decode 256, one image', vae(decode256), 1),
      row('VAE decode 512, one image', vae(decode512), 1),
    ],
  )
}

const causes = readFileSync(path.join(root, 'scripts/cuda/causes.md'), 'utf8').trim()

const page = `# What an H100 should need

Written by \`node scripts/roofline.mjs --write\` from shapes and a model of the machine (\`scripts/cuda/model.mjs\`). **Nothing
here was measured with this project's kernels**: no GPU was at hand. It says where time should go, so that a profile has
something to contradict.

Ceilings, measured on one H100 80GB: ${tera(machine.bf16)} TFLOP/s bf16 (8192³), ${machine.memory / 1e12} TB/s. Taken from
documents: ${tera(machine.fp32)} TFLOP/s fp32, ${machine.flopPerClock} FLOP a clock of a multiprocessor's tensor cores (so the
measured rate is a clock of ${(machine.clock / 1e9).toFixed(2)} GHz), mma.sync at ${machine.mmaSync} of wgmma, ${machine.special} exponentials and
${machine.shared} bytes of shared memory a clock of a multiprocessor, ${(machine.l2 * machine.multiprocessors).toFixed(0)} bytes a clock of L2. Assumed: ${machine.reach} of the copy's
bandwidth, ${assumed.launch * 1e6} µs between kernels of a graph, ${assumed.fill * 1e6} µs to fill and drain a persistent one, ${assumed.latency} clocks of latency.

- **floor**: FLOPs over the matrix rate, or bytes over the bandwidth, each input read and each output written once; the larger.
- **predicted**: the larger of what the kernel's tiles take and of its bytes over ${machine.reach} of the bandwidth, and its start. A
  product of warpgroups takes, for each round of tiles over ${machine.multiprocessors} multiprocessors, its steps of 64 of K at the tensor cores' or L2's pace,
  and that part of the epilogues that the other warpgroup's products do not cover.

## Against the bars

${verdicts()}

${causes}

## Models

${totals()}

## DiT-XL/2 256, 32 images with guidance: a block (of 28)

${operations(xl256.block)}

Around the blocks:

${operations(xl256.around)}

Its products in TF32 instead of bf16:

${operations(productsInTf32(models['DiT-XL/2'], 64 * 256))}

## DiT-XL/2 512, 8 images with guidance: a block

${operations(xl512.block)}

## DiT-XL/2 256, one image with guidance: a block

${operations(one256.block)}

Around the blocks:

${operations(one256.around)}

## Shapes that are ready to be timed

\`scripts/gpu-check bench --variants\` times those of \`native/cuda/linear_candidates.h\` beside production's: tile, blocks of a cluster,
stages, rows of tiles in a group, "t" for consumers that take turns. The three of which the most is expected; the model knows
neither what a group does for L2, nor the ends of short rings, nor shared memory's limits.

${shapes()}

## DiT-S/2 256, 32 images with guidance: a block (of 12)

${operations(s256.block)}

## Training DiT-XL/2 256, a micro-batch of 64: a block

${operations([...trained.forward, ...trained.backward])}

Once a step:

${operations([trained.optimiser])}

## VAE decode 256

${operations(decode256)}

## VAE decode 512

${operations(decode512)}

## What fits on a multiprocessor

From [KERNELS.md](KERNELS.md). Kernels with 168 registers divide them anew: 40 or 24 for the copying warpgroup, 232 or 240 for
the two that compute.

${occupancy()}
`
if (process.argv.includes('--write')) writeFileSync(path.join(root, 'bench/ROOFLINE.md'), page)
else process.stdout.write(page)
