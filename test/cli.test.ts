// timeout: 300s
import { existsSync, mkdtempSync, readdirSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import * as v from 'valibot'
import { resolveSource } from '../lib/formats/source.js'
import { DiT, imageGrid } from '../lib/index.js'
import { dit, ditJson } from './helpers/cli.js'
import { fixture, temporaryFolder } from './helpers/files.js'
import { materialise } from './helpers/tensors.js'

const fashion = fixture('fashion_dit/fashion.pt')
const pipeline = fixture('diffusers_pipeline')
const fp32 = ['--precision', 'fp32', '--threads', '1']

async function pixels(file: string): Promise<Uint8Array> {
  return new Uint8Array(await sharp(file).raw().toBuffer())
}

// ---- dit sample ----

const sampleSchema = v.strictObject({
  source: v.string(),
  notes: v.array(v.string()),
  device: v.literal('cpu'),
  precision: v.picklist(['fp32', 'bf16']),
  width: v.number(),
  height: v.number(),
  images: v.array(
    v.strictObject({
      file: v.string(),
      label: v.number(),
      className: v.optional(v.string()),
      seed: v.union([v.number(), v.string()]),
    }),
  ),
  seconds: v.strictObject({
    load: v.number(),
    sample: v.number(),
    decode: v.number(),
    write: v.number(),
    total: v.number(),
  }),
})

test('sample: several labels make one grid, of the images that the library makes', async () => {
  const out = path.join(temporaryFolder(), 'grid.png')
  const options = ['--sampler', 'ddim', '--steps', '4', '--guidance', '3', '--eta', '0.5']
  const where = ['--model', fashion, '--out', out, '--columns', '3', ...fp32]
  const labels = ['--labels', '7,8,9', '--seed', '11']
  const { status, stdout, stderr } = await dit(['sample', ...where, ...labels, ...options])
  assert.is(status, 0, stderr)
  assert.is(stderr, '')
  for (const [label, seed] of [
    [7, 11],
    [8, 12],
    [9, 13],
  ]) {
    assert.ok(stdout.includes(`${out}: class ${label}, seed ${seed}, 16×16\n`), stdout)
  }
  assert.match(stdout, /^model +.*fashion\.pt, EMA weights$/m)

  await using model = await DiT.load(fashion, { precision: 'fp32', threads: 1 })
  const images = await model.sample([7, 8, 9], {
    sampler: 'ddim',
    steps: 4,
    guidance: 3,
    eta: 0.5,
    seed: 11,
  })
  const grid = await imageGrid(images, { columns: 3 })
  const { data, info } = await sharp(out).raw().toBuffer({ resolveWithObject: true })
  assert.equal([info.width, info.height], [48, 16])
  const channels = info.channels // a PNG of greys may be read as RGB
  assert.equal(
    Uint8Array.from(grid.data),
    Uint8Array.from(grid.data, (_, i) => data[i * channels] as number),
  )
})

test('sample: a VAE, class names, a file for each image, JSON', async () => {
  const out = temporaryFolder()
  const result = v.parse(
    sampleSchema,
    await ditJson(
      ...['sample', '--model', pipeline, '--out', `${out}/%02d.png`, '--seed', '3', '--steps', '2'],
      ...['--labels', 'Label 1,3', ...fp32],
    ),
  )
  const labels = result.images.map(({ label, className, seed }) => [label, className, seed])
  assert.equal(labels, [
    [1, 'class number 1, label 1', 3],
    [3, 'class number 3, label 3', 4],
  ])
  const files = result.images.map(({ file }) => file)
  assert.equal(files, [`${out}/00.png`, `${out}/01.png`])
  const { latentSize, vaeFactor } = { latentSize: 8, vaeFactor: result.width / 8 }
  assert.ok(Number.isInteger(vaeFactor) && vaeFactor > 1, `${result.width} pixels`)
  for (const file of files) {
    const { width, height } = await sharp(file).metadata()
    assert.equal([width, height], [latentSize * vaeFactor, latentSize * vaeFactor])
  }
  const [a, b] = await Promise.all(files.map(pixels))
  assert.not.equal(a, b)
  const { load, sample, decode, write, total } = result.seconds
  assert.ok(load > 0 && sample > 0 && decode > 0 && write > 0)
  assert.ok(load + sample + decode + write <= total)
})

test('sample: --latent-size, a folder, a seed of 64 bits', async () => {
  const out = temporaryFolder()
  const result = v.parse(
    sampleSchema,
    await ditJson(
      ...['sample', '--model', fashion, '--out', out, '--seed', '18446744073709551615'],
      ...['--labels', '2,2', '--steps', '2', '--latent-size', '16x24', ...fp32],
    ),
  )
  assert.equal([result.height, result.width], [16, 24])
  assert.equal(
    result.images.map(({ seed }) => seed),
    ['18446744073709551615', 0],
  )
  assert.equal(readdirSync(out).sort(), ['class2-seed0.png', 'class2-seed18446744073709551615.png'])
})

test('sample: --weights chooses', async () => {
  const out = temporaryFolder()
  const files = await Promise.all(
    ['ema', 'model'].map(async (weights) => {
      const file = path.join(out, `${weights}.png`)
      const options = ['--weights', weights, '--labels', '1', '--seed', '1', '--steps', '8']
      await ditJson('sample', '--model', fashion, '--out', file, ...options, ...fp32)
      return pixels(file)
    }),
  )
  assert.not.equal(files[0], files[1])
})

test('sample: Ctrl-C ends it with status 130 and no file', async () => {
  const out = path.join(temporaryFolder(), 'never.png')
  const labels = Array(90).fill(1).join(',')
  const options = ['--sampler', 'ddpm', '--steps', '1000', '--labels', labels]
  const { status, stdout, stderr } = await dit(
    ['sample', '--model', fashion, '--out', out, ...options, ...fp32],
    { interruptAt: /^sampling: \d+ of 90000 steps/m }, // a line every five seconds
  )
  assert.is(status, 130, stderr)
  assert.is(stdout, '')
  assert.match(stderr, /^dit: interrupted$/m)
  assert.not.ok(existsSync(out))
})

// ---- dit info ----

const infoSchema = v.strictObject({
  source: v.strictObject({
    description: v.string(),
    kind: v.string(),
    weights: v.optional(v.string()),
    hub: v.optional(v.unknown()),
    notes: v.array(v.string()),
  }),
  config: v.strictObject({
    depth: v.number(),
    hidden: v.number(),
    heads: v.number(),
    patchSize: v.number(),
    latentSize: v.strictTuple([v.number(), v.number()]),
    channels: v.number(),
    numClasses: v.number(),
    nullClass: v.boolean(),
    learnSigma: v.boolean(),
    mlpHidden: v.number(),
  }),
  parameters: v.number(),
  forward: v.array(
    v.strictObject({
      latentSize: v.array(v.number()),
      imageSize: v.array(v.number()),
      tokens: v.number(),
      macs: v.number(),
      flops: v.number(),
    }),
  ),
  weightBytes: v.strictObject({ fp32: v.number(), bf16: v.number() }),
  vae: v.nullable(
    v.strictObject({
      source: v.string(),
      config: v.looseObject({ scalingFactor: v.number() }),
      parameters: v.number(),
      decode: v.strictObject({ macs: v.number(), flops: v.number() }),
    }),
  ),
  schedule: v.looseObject({ kind: v.string(), steps: v.number() }),
  classNames: v.record(v.string(), v.string()),
  devices: v.array(v.looseObject({ device: v.string(), available: v.boolean() })),
})

test('info: what a checkpoint is', async () => {
  const { status, stdout, stderr } = await dit(['info', fashion])
  assert.is(status, 0, stderr)
  for (const line of [
    /^weights +.*fashion\.pt, EMA weights$/m,
    /^size +depth 4, hidden 128, 4 heads, MLP 512, patch 2$/m,
    /^latent +16×16, 1 channel, variance learned$/m,
    /^parameters +1\.27 M$/m,
    /^one forward +16×16 pixels: 64 tokens, 55\.10 MMAC, 110\.2 MFLOP$/m,
    /^ +256×256 pixels: /m,
    /^ +512×512 pixels: /m,
    /^VAE +none$/m,
    /^devices +cpu: /m,
  ]) {
    assert.match(stdout, line)
  }
})

test('info: JSON, of a pipeline with a VAE and class names', async () => {
  const facts = v.parse(infoSchema, await ditJson('info', pipeline))
  const { dit: model, vae } = await resolveSource(pipeline)
  assert.equal(facts.config, model.config)
  assert.is(facts.vae?.config.scalingFactor, vae?.config.scalingFactor)
  assert.is(facts.classNames[4], 'class number 4, label 4')
  const factor = 2 ** ((vae?.config.blockOutChannels.length ?? 0) - 1)
  assert.equal(
    facts.forward.map(({ imageSize }) => imageSize),
    [model.config.latentSize.map((size) => size * factor), [256, 256], [512, 512]],
  )
  for (const { macs, flops } of facts.forward) assert.is(flops, 2 * macs)
})

test('info: a reader that has seen enough is no error', async () => {
  const { status, stderr } = await dit(['info', fashion], { closeStdout: true })
  assert.is(status, 0)
  assert.is(stderr, '')
})

// ---- dit convert ----

const convertSchema = v.strictObject({
  source: v.string(),
  weights: v.optional(v.string()),
  target: v.string(),
  notes: v.array(v.string()),
  seconds: v.number(),
})

async function tensorsOf(source: string, weights?: 'ema' | 'model') {
  const { dit: model } = await resolveSource(source, weights ? { weights } : {})
  return Object.fromEntries(model.tensors.map((tensor) => [tensor.name, materialise(tensor)]))
}

for (const [target, weights] of [
  ['folder', 'ema'],
  ['model.safetensors', 'model'],
] as const) {
  test(`convert: a training checkpoint, its ${weights} weights, to ${target}`, async () => {
    const out = path.join(temporaryFolder(), target)
    const result = v.parse(
      convertSchema,
      await ditJson('convert', fashion, out, '--weights', weights),
    )
    assert.is(result.weights, weights)
    assert.is(result.target, out)
    assert.equal(await tensorsOf(out), await tensorsOf(fashion, weights))
  })
}

test('convert: with names for the classes', async () => {
  const out = path.join(temporaryFolder(), 'named.safetensors')
  const { status, stderr } = await dit(['convert', fashion, out, '--class-names', 'shirt,trouser'])
  assert.is(status, 0, stderr)
  const { classNames } = (await ditJson('info', out)) as { classNames: object }
  assert.equal(classNames, { 0: 'shirt', 1: 'trouser' })
})

test('convert: to bf16', async () => {
  const out = path.join(mkdtempSync(path.join(temporaryFolder(), 'out-')), 'model.safetensors')
  const { status, stdout, stderr } = await dit(['convert', fashion, out, '--dtype', 'bf16'])
  assert.is(status, 0, stderr)
  assert.match(stdout, /fashion\.pt, EMA weights → .*model\.safetensors/)
  const { dit: model } = await resolveSource(out)
  for (const { parts } of model.tensors) assert.is(parts[0]?.dtype, 'BF16')
})

// ---- what is wrong ----

const sample = ['sample', '--model', fashion, '--out', '/tmp/x.png']
const usageErrors: [args: string[], message: RegExp][] = [
  [['nope'], /unknown command 'nope'/],
  [['sample'], /required option '--model <source>' not specified/],
  [['info'], /missing required argument 'model'/],
  [[...sample, '--labels', '1', '--step', '5'], /unknown option '--step'.*/],
  [[...sample, '--labels', '1', '--steps', '5x'], /'--steps <n>' argument '5x' is invalid/],
  [[...sample, '--labels', '1', '--steps', '-5'], /Expected an integer of at least 1/],
  [[...sample, '--labels', '1', '--sampler', 'euler'], /Allowed choices are dpm\+\+, ddim, ddpm/],
  [[...sample, '--labels', '1,,2'], /'--labels <list>' argument '1,,2' is invalid/],
  [[...sample, '--labels', '11'], /labels\[0\] but got 11 \(ERR_DIT_OPTION\)/],
  [[...sample, '--labels', 'cat'], /without class names.*\(ERR_DIT_OPTION\)/],
  [[...sample, '--labels', '1', '--steps', '5', '--spacing', 'ddim5'], /ERR_DIT_OPTION/],
  [[...sample, '--labels', '1', '--eta', '2', '--sampler', 'ddim'], /eta.*\(ERR_DIT_OPTION\)/],
  [[...sample, '--labels', '1', '--latent-size', '15'], /latentSize.*\(ERR_DIT_OPTION\)/],
  [['sample', '--model', fashion, '--labels', '1', '--out', 'x.gif'], /--out.*\(ERR_DIT_OPTION\)/],
  [['convert', fashion, 'x', '--dtype', 'fp8'], /Allowed choices are fp32, bf16/],
]

test('a wrong command line: status 2, one line on stderr, nothing on stdout', async () => {
  const results = await Promise.all(usageErrors.map(([args]) => dit(args)))
  for (const [i, { status, stdout, stderr }] of results.entries()) {
    const [args, message] = usageErrors[i] as [string[], RegExp]
    const what = `${args.join(' ')}: ${stderr}`
    assert.is(status, 2, what)
    assert.is(stdout, '', what)
    assert.match(stderr, /^dit: [^\n]*\n(\(Did you mean [^\n]*\n)?$/, what)
    assert.match(stderr, message, what)
  }
})

const badModels: [file: string, code: string][] = [
  ['no/such/file.safetensors', 'ERR_DIT_FILE'],
  [fixture('bad_inputs/truncated_half.pt'), 'ERR_DIT_FORMAT'],
  [fixture('bad_inputs/os_system.pt'), 'ERR_DIT_FORMAT'],
  [fixture('bad_inputs/not_json.safetensors'), 'ERR_DIT_FORMAT'],
  [fixture('bad_inputs/absurd_header_length.safetensors'), 'ERR_DIT_FORMAT'],
  [fixture('pt_checkpoint/legacy_format.pt'), 'ERR_DIT_FORMAT'],
]

test('a bad model: status 1, one line with the code, no stack', async () => {
  const out = temporaryFolder()
  const results = await Promise.all(
    badModels.flatMap(([file]) => [
      dit(['info', file, '--json']),
      dit(['sample', '--model', file, '--labels', '1', '--out', path.join(out, 'x.png')]),
      dit(['convert', file, path.join(out, 'x')]),
    ]),
  )
  for (const [i, { status, stdout, stderr }] of results.entries()) {
    const [file, code] = badModels[Math.floor(i / 3)] as [string, string]
    assert.is(status, 1, `${file}: ${stderr}`)
    assert.is(stdout, '')
    assert.match(stderr, new RegExp(`^dit: [^\n]+ \\(${code}\\)\n$`), file)
  }
  assert.equal(readdirSync(out), [])
})

test('--debug and DIT_DEBUG print the stack', async () => {
  const args = ['info', 'no/such/file.safetensors']
  for (const run of [dit([...args, '--debug']), dit(args, { env: { DIT_DEBUG: '1' } })]) {
    const { status, stderr } = await run
    assert.is(status, 1)
    assert.match(stderr, /^dit: .*\(ERR_DIT_FILE\)\n/)
    assert.match(stderr, /\n +at /)
  }
})

test('help and version are results', async () => {
  const [help, version, none] = await Promise.all([dit(['--help']), dit(['--version']), dit([])])
  assert.is(help?.status, 0)
  for (const command of ['sample', 'info', 'convert']) assert.match(help?.stdout ?? '', command)
  assert.is(version?.status, 0)
  assert.match(version?.stdout ?? '', /^\d+\.\d+\.\d+\n$/)
  assert.is(none?.status, 2)
  assert.is(none?.stdout, '')
})

test.run()
