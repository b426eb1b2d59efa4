// Every option refuses what it cannot take, with its name, what was expected and what was given.
// timeout: 120s
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { DiTErrorCode } from '../lib/errors.js'
import { DiT, type Label } from '../lib/index.js'
import { editDistance, resolveLabels } from '../lib/labels.js'
import { jobRanges } from '../lib/sampling.js'
import { fixture, rejects } from './helpers/files.js'

const fp32 = { precision: 'fp32', threads: 1 } as const
const pipeline = fixture('diffusers_pipeline')
const tensor = (...shape: number[]) => {
  return { data: new Float32Array(shape.reduce((a, b) => a * b, 1)), shape }
}

type Case = [option: Record<string, unknown>, message: RegExp, code?: DiTErrorCode]

const sampleCases: Case[] = [
  [{ sampler: 'euler' }, /'dpm\+\+' or 'ddim' or 'ddpm' for sampler but got 'euler'/],
  [{ steps: 0 }, /an integer of at least 1 for steps but got 0/],
  [{ steps: 2.5 }, /an integer of at least 1 for steps but got 2\.5/],
  [{ steps: '25' }, /for steps but got '25'/],
  [{ steps: 1001, sampler: 'ddim' }, /1 to 1000 steps.*got 1001/],
  [{ steps: 1001 }, /steps: expected 1 to 1000, got 1001/],
  [{ steps: 1, sampler: 'ddpm' }, /at least 2 steps/],
  [{ spacing: 'ddim300', sampler: 'ddim' }, /300/],
  [{ spacing: '10;20' }, /section list.* for spacing but got '10;20'/],
  [{ spacing: '10', steps: 10 }, /nothing beside spacing for steps but got 10/],
  [{ eta: 2, sampler: 'ddim' }, /a number from 0 to 1 for eta but got 2/],
  [{ eta: 0.5 }, /0 for sampler 'dpm\+\+' for eta but got 0\.5/],
  [{ clip: 1 }, /true or false for clip but got 1/],
  [{ guidance: Number.NaN }, /a finite number for guidance but got NaN/],
  [{ guidance: '4' }, /for guidance but got '4'/],
  [{ guidanceChannels: 5 }, /1 to 4 or 'all' for guidanceChannels but got 5/],
  [{ guidanceChannels: 0 }, /a positive integer or 'all' for guidanceChannels but got 0/],
  [{ guidanceInterval: [0.8, 0.2] }, /\[from, to\].* for guidanceInterval but got \[0\.8,0\.2\]/],
  [{ guidanceInterval: [0, 2] }, /guidanceInterval/],
  [{ seed: -1 }, /2\^53 - 1 or a bigint.* for seed but got -1/],
  [{ seed: 2 ** 53 }, /for seed but got 9007199254740992/],
  [{ seed: 2n ** 64n }, /for seed but got 18446744073709551616n/],
  [{ seeds: [1] }, /Expected 2 seeds, one per image, but got 1/, 'ERR_DIT_SHAPE'],
  [{ seeds: [1, 'x'] }, /for seeds\.1 but got 'x'/],
  [{ seeds: [1, 2], seed: 1 }, /nothing beside seeds for seed but got 1/],
  [{ noise: [1, 2] }, /a Tensor.* for noise but got \[1,2\]/],
  [
    { noise: tensor(2, 4, 8, 4) },
    /\[2, 4, 8, 8\] for noise but got \[2, 4, 8, 4\]/,
    'ERR_DIT_SHAPE',
  ],
  [{ noise: tensor(1, 4, 8, 8) }, /Expected shape \[2, 4, 8, 8\]/, 'ERR_DIT_SHAPE'],
  [
    { noise: { data: new Float32Array(3), shape: [2, 4, 8, 8] } },
    /noise: shape \[2, 4, 8, 8\] needs 512 numbers, but data has 3/,
    'ERR_DIT_SHAPE',
  ],
  [
    { stepNoise: tensor(2, 5, 4, 8, 8), steps: 6 },
    /\[2, 6, 4, 8, 8\] for stepNoise but got \[2, 5, 4, 8, 8\]/,
    'ERR_DIT_SHAPE',
  ],
  [
    { stepNoise: tensor(2, 5, 4, 8, 8), spacing: '2,4', sampler: 'ddim' },
    /\[2, 6, 4, 8, 8\]/,
    'ERR_DIT_SHAPE',
  ],
  [{ output: 'png' }, /'image' or 'latent' for output but got 'png'/],
  [{ signal: {} }, /an AbortSignal for signal but got \{\}/],
  [{ onProgress: 1 }, /a function for onProgress but got 1/],
  [{ preview: 0 }, /an integer of at least 1 or \{ every, kind \} for preview but got 0/],
  [{ preview: { every: 0 } }, /for preview but got \{"every":0\}/],
  [{ preview: { kind: 'linear' } }, /for preview/],
  [{ preview: { every: 2, kind: 'fast' } }, /for preview/],
  [{ preview: { every: 2, size: 3 } }, /for preview/],
  [{ step: 5 }, /There is no option 'step'\. Did you mean 'steps'\?/],
  [{ guidancescale: 5 }, /There is no option 'guidancescale'\. Did you mean/],
  [{ GUIDANCE: 5 }, /Did you mean 'guidance'\?/],
  [{ temperature: 1 }, /There is no option 'temperature'\. There are sampler, steps, /],
  [{ steps: null }, /for steps but got null/],
]

test('sample and stream: wrong options', async () => {
  await using dit = await DiT.load(pipeline, fp32)
  for (const [options, message, code = 'ERR_DIT_OPTION'] of sampleCases) {
    await rejects(() => dit.sample([0, 1], options as never), code, message)
    await rejects(() => dit.stream([0, 1], options as never).next(), code, message)
  }
  for (const options of [null, 5, 'x', [1]]) {
    await rejects(() => dit.sample(0, options as never), 'ERR_DIT_OPTION', /an object for options/)
  }
  // What is undefined is absent.
  const images = await dit.sample(0, { steps: 2, seed: undefined, spacing: undefined })
  assert.is(images.length, 1)
})

test('load and create: wrong options', async () => {
  const cases: Case[] = [
    [{ device: 'gpu' }, /'auto', 'cpu', 'cuda' or 'cuda:<number>' for device but got 'gpu'/],
    [{ precision: 'fp16' }, /'fp32' or 'tf32' or 'bf16' for precision but got 'fp16'/],
    [{ threads: -1 }, /an integer from 0 to 4096 for threads but got -1/],
    [{ weights: 'best' }, /'ema' or 'model' for weights but got 'best'/],
    [{ config: 'DiT-XXL/2' }, /DiT-S\/2.* for config but got 'DiT-XXL\/2'/],
    [{ config: { depths: 3 } }, /depths/],
    [{ vae: '' }, /a string for vae but got ''/],
    [{ revision: 5 }, /a string for revision but got 5/],
    [{ latentSize: 0 }, /a positive integer or \[height, width\] for latentSize but got 0/],
    [{ latentSize: [8, 7] }, /multiples of the patch size, 2, for latentSize but got \[8,7\]/],
    [{ patchSize: 3 }, /a divisor of the latent's sides, 8×8, for patchSize but got 3/],
    [{ id2label: { 9: 'x' } }, /names of classes 0 to \d for id2label but got 9/],
    [{ numClasses: 1.5 }, /an integer from 1 to 1048576 for numClasses but got 1.5/],
    [{ prescision: 'fp32' }, /Did you mean 'precision'\?/],
  ]
  for (const [options, message] of cases) {
    const all = { ...fp32, ...options } as never
    await rejects(() => DiT.load(pipeline, all), 'ERR_DIT_OPTION', message)
  }
  await rejects(() => DiT.load(5 as never), 'ERR_DIT_OPTION', /for source but got 5/)
  const size = { depth: 1, hidden: 24, heads: 2 }
  await rejects(
    () => DiT.create({ ...size, heads: 5 }),
    'ERR_DIT_OPTION',
    /heads \(5\) must divide/,
  )
  await rejects(() => DiT.create({ depth: 1, hidden: 24 }), 'ERR_DIT_OPTION', /config\.heads/)
  await rejects(() => DiT.create('DiT-S/3'), 'ERR_DIT_OPTION', /one of DiT-S\/2/)
  for (const [options, message] of [
    [{ seed: 0.5 }, /for seed but got 0\.5/],
    [{ id2label: { a: 'x' } }, /an object from class numbers to names for id2label/],
    [{ schedule: { steps: 0 } }, /an integer from 1 to 1000000 for schedule\.steps but got 0/],
    [{ schedule: { betaStart: 2 } }, /for schedule\.betaStart but got 2/],
    [{ schedule: { step: 2 } }, /step/],
    [{ schedule: { betaStart: 0.5, betaEnd: 0.1 } }, /betaStart <= betaEnd < 1, got 0.5 and 0.1/],
    [{ schedule: { betaStart: 1e-20 } }, /just below 1 to just above 0, got 1 and/],
    [{ schedule: { betaEnd: 0.9999 } }, /just below 1 to just above 0.* after 1000 steps, 0/],
  ] as Case[]) {
    await rejects(() => DiT.create(size, options as never), 'ERR_DIT_OPTION', message)
  }
})

test('denoise, decode, encode: wrong arguments', async () => {
  await using dit = await DiT.load(pipeline, fp32)
  const x = tensor(2, 4, 8, 8)
  const cases: Case[] = [
    [{ x: [1], t: 1, y: 1 }, /a Tensor.* for x but got \[1\]/],
    [{ x: tensor(2, 3, 8, 8), t: 1, y: 1 }, /\[n, 4, 8, 8\] for x/, 'ERR_DIT_SHAPE'],
    [{ x: tensor(0, 4, 8, 8), t: 1, y: 1 }, /for x but got \[0, 4, 8, 8\]/, 'ERR_DIT_SHAPE'],
    [{ x, t: [1], y: 1 }, /Expected 2 timesteps for t but got 1/, 'ERR_DIT_SHAPE'],
    [{ x, t: 1000, y: 1 }, /numbers from 0 to 999 for t but got 1000/],
    [{ x, t: 999.5, y: 1 }, /numbers from 0 to 999 for t but got 999.5/],
    [{ x, t: undefined, y: 1 }, /a number or an array of them for t but got undefined/],
    [{ x, t: null, y: 1 }, /a number or an array of them for t but got null/],
    [{ x, t: 1 }, /a value for y but got undefined/],
    [{ x, t: 1, y: 1, guidance: 1e39 }, /a finite number for guidance but got 1e\+39/],
    [{ x, t: [1, Number.NaN], y: 1 }, /for t but got NaN/],
    [{ x, t: 'now', y: 1 }, /a number or an array of them for t but got 'now'/],
    [{ x, t: 1, y: [1] }, /Expected 2 labels for y but got 1/, 'ERR_DIT_SHAPE'],
    [{ x, t: 1, y: [1, 6] }, /a class from 0 to 4, or 5 for no class for y\[1\] but got 6/],
    [{ x, t: 1, y: 1, guidance: 'a' }, /for guidance but got 'a'/],
    [{ x, t: 1, y: 1, guidanceChannels: 9 }, /for guidanceChannels but got 9/],
    [{ x, t: 1, y: 1, scale: 3 }, /no option 'scale'/],
    [{ x, t: 1 }, /for y/],
  ]
  for (const [argument, message, code = 'ERR_DIT_OPTION'] of cases) {
    await rejects(() => dit.denoise(argument as never), code, message)
  }
  await rejects(() => dit.decode(tensor(1, 3, 8, 8)), 'ERR_DIT_SHAPE', /\[n, 4, height, width\]/)
  await rejects(() => dit.decode([1] as never), 'ERR_DIT_OPTION', /a Tensor/)
  await rejects(() => dit.decode(x, { n: 1 } as never), 'ERR_DIT_OPTION', /no option 'n'/)
  const image = { data: new Uint8Array(48), width: 4, height: 4, channels: 3 }
  await rejects(() => dit.encode([]), 'ERR_DIT_OPTION', /at least one image/)
  await rejects(() => dit.encode([image, null] as never), 'ERR_DIT_OPTION', /for images\[1\]/)
  await rejects(
    () => dit.encode([image, { ...image, data: new Uint8Array(96), width: 8 }]),
    'ERR_DIT_SHAPE',
    /one size, 4×4×3, but got one of 8×4×3/,
  )
  await rejects(
    () => dit.encode({ ...image, channels: 1, width: 12 }),
    'ERR_DIT_SHAPE',
    /3 channels and sizes that are multiples of 2 but got 12×4 with 1/,
  )
  await rejects(() => dit.encode(tensor(1, 3, 5, 4)), 'ERR_DIT_SHAPE', /multiples of 2.*4×5/)
  await rejects(() => dit.encode(image, { seed: 1 }), 'ERR_DIT_OPTION', /nothing without sample/)
})

test('guidance needs a null class', async () => {
  const size = { depth: 1, hidden: 24, heads: 2, latentSize: 4, channels: 1, numClasses: 2 }
  await using dit = await DiT.create({ ...size, nullClass: false }, fp32)
  await rejects(
    () => dit.sample(0, { guidance: 2 }),
    'ERR_DIT_OPTION',
    /Expected 1 for guidance but got 2.*no null class/,
  )
  assert.is((await dit.sample(0, { steps: 2 })).length, 1)
  await rejects(() => dit.sample(2), 'ERR_DIT_OPTION', /a class from 0 to 1 for labels but got 2/)
})

// ---- labels ----

const config = { numClasses: 1000, nullClass: true, hidden: 4 } as never
const names = {
  134: 'crane',
  207: 'golden retriever',
  281: 'tabby, tabby cat',
  282: 'tiger cat',
  292: 'tiger, Panthera tigris',
  517: 'crane',
  638: 'maillot',
  639: 'maillot, tank suit',
}
const classOf = (label: Label) => resolveLabels(label, config, names).classes[0]

test('labels: numbers, names and embeddings', () => {
  assert.is(classOf(0), 0)
  assert.is(classOf(1000), 1000)
  assert.is(classOf('golden retriever'), 207)
  assert.is(classOf('Golden Retriever '), 207)
  assert.is(classOf('tabby cat'), 281)
  assert.is(classOf('Panthera Tigris'), 292)
  assert.is(classOf('tiger'), 292)
  assert.is(classOf('maillot'), 638) // exact wins over a synonym
  assert.is(classOf('tank suit'), 639)
  const vector = Float32Array.of(1, 2, 3, 4)
  assert.equal(resolveLabels([vector, 'tiger cat', 5], config, names), {
    classes: [-1, 282, 5],
    vectors: [vector, null, null],
  })
})

test('labels: what is wrong is named, with what it could have been', () => {
  const fails = (label: unknown, message: RegExp) => {
    assert.throws(
      () => resolveLabels(label, config, names),
      (error: Error) => message.test(error.message),
      `${String(label)} should fail with ${message}`,
    )
  }
  fails(-1, /a class from 0 to 999, or 1000 for no class for labels but got -1/)
  fails(1001, /got 1001/)
  fails([1, 2.5], /for labels\[1\] but got 2\.5/)
  fails([], /at least one label for labels but got \[\]/)
  fails(null, /a class number, a class name or a Float32Array for labels but got null/)
  fails(5n, /got 5n/)
  fails(
    'crane',
    /several classes are called 'crane': 134 \(crane\), 517 \(crane\)\. Give the number/,
  )
  fails(
    'golden retreiver',
    /no class is called 'golden retreiver'\. Did you mean 'golden retriever' \(207\)\?/,
  )
  fails('panthera', /Did you mean 'panthera tigris' \(292\)\?/)
  fails('xyzzy quux', /no class is called 'xyzzy quux'\.$/)
  fails(new Float32Array(3), /an embedding of 4 numbers for labels but got 3/)
  assert.throws(() => resolveLabels('dog', config, {}), /came without class names/)
})

test('editDistance', () => {
  assert.is(editDistance('', ''), 0)
  assert.is(editDistance('', 'abc'), 3)
  assert.is(editDistance('kitten', 'sitting'), 3)
  assert.is(editDistance('steps', 'step'), 1)
})

test('jobRanges: at most 4 MiB a job, at least one image', () => {
  assert.equal(jobRanges(3, 10 << 20), [
    [0, 1],
    [1, 2],
    [2, 3],
  ])
  assert.equal(jobRanges(5, 2 << 20), [
    [0, 2],
    [2, 4],
    [4, 5],
  ])
  assert.equal(jobRanges(64, 256), [[0, 64]])
})

test.run()
