// The parts of training that need no model: options, learning rates, what is a spike, changed options,
// metrics.jsonl, the folder of checkpoints.
import { spawnSync } from 'node:child_process'
import {
  appendFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  unlinkSync,
} from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { AccumulateRequest, EncodeRequest, Model, SaveRequest } from '../bindings.js'
import type { OpenData } from '../lib/data/types.js'
import { DiTError } from '../lib/errors.js'
import { completeConfig } from '../lib/formats/dit_config.js'
import { defaultSchedule } from '../lib/formats/schedule_config.js'
import { resolveSource } from '../lib/formats/source.js'
import { itemSize, type VaeConfig } from '../lib/formats/types.js'
import type { DoneEvent, Engine } from '../lib/jobs.js'
import { check } from '../lib/options.js'
import { readState, readTensors } from '../lib/train/checkpoint.js'
import { MetricsLog } from '../lib/train/metrics_log.js'
import {
  parseBytes,
  resolveSettings,
  type TrainOptions,
  trainSchema,
} from '../lib/train/options.js'
import { toRows } from '../lib/train/rows.js'
import { RunFolder } from '../lib/train/run_folder.js'
import { averaging, learningRate } from '../lib/train/schedules.js'
import { UsualNorm } from '../lib/train/spikes.js'
import { checkUnchanged, newState, type TrainedModel } from '../lib/train/state.js'
import { Trainer } from '../lib/train/trainer.js'
import { rejects, temporaryFolder } from './helpers/files.js'
import { tiny } from './helpers/training.js'

const config = completeConfig(tiny)
const settings = (options: TrainOptions = {}) => resolveSettings({ seed: 3, ...options }, config)

// ---- learning rates ----

test('the learning rate of each schedule', () => {
  const rate = (options: TrainOptions, step: number) =>
    learningRate(settings(options), options.schedule, step)
  assert.is(rate({}, 1), 1e-4)
  assert.is(rate({ lr: 0.5 }, 1e9), 0.5)

  const linear = { schedule: 'linear', lr: 0.4, warmup: 4 } as const
  const ramp = [1, 2, 3, 4, 5, 1000].map((step) => rate(linear, step))
  assert.equal(ramp, [0.1, 0.2, (0.4 * 3) / 4, 0.4, 0.4, 0.4])
  assert.is(rate({ ...linear, warmup: 0 }, 1), 0.4)

  const cosine = { schedule: 'cosine', lr: 1, minLr: 0.2, warmup: 10, steps: 110 } as const
  assert.is(rate(cosine, 5), 0.5)
  assert.is(rate(cosine, 10), 1)
  assert.ok(Math.abs(rate(cosine, 60) - 0.6) < 1e-12)
  assert.ok(Math.abs(rate(cosine, 110) - 0.2) < 1e-12)
  assert.is(rate(cosine, 500), rate(cosine, 110))
  const quarter = 0.2 + 0.4 * (1 + Math.SQRT1_2)
  assert.ok(Math.abs(rate(cosine, 35) - quarter) < 1e-12)

  const own = { schedule: (step: number) => 1 / step }
  assert.is(rate(own, 8), 0.125)
  for (const bad of [Number.NaN, -1, Number.POSITIVE_INFINITY, 1e39, '1', undefined]) {
    const schedule = () => bad as number
    assert.throws(() => rate({ schedule }, 3), /from schedule\(3\) but got/, String(bad))
  }
})

test('the warm-up is 5 % of the steps, at most 10 000', () => {
  const warmup = (options: TrainOptions) => settings(options).warmup
  assert.is(warmup({}), 0)
  assert.is(warmup({ schedule: 'linear' }), 10_000)
  assert.is(warmup({ schedule: 'linear', steps: 90 }), 5)
  assert.is(warmup({ schedule: 'cosine', steps: 400_000 }), 10_000)
  assert.is(warmup({ schedule: 'linear', warmup: 3 }), 3)
})

test('the average is that of the last tenth of the steps, until its decay is reached', () => {
  const kept = (options: TrainOptions, step: number) => averaging(settings(options), step)
  assert.equal(
    [1, 2, 90, 80_000, 1e6].map((step) => kept({}, step)),
    [2 / 11, 3 / 12, 91 / 100, 80_001 / 80_010, 0.9999],
  )
  assert.is(kept({ emaDecay: 0.5 }, 7), 8 / 17)
  assert.is(kept({ emaDecay: 0.5 }, 9), 0.5)
  assert.is(kept({ emaWarmup: false }, 1), 0.9999)
})

// ---- spikes ----

test('what is usual is the median of the last 100 norms', () => {
  const usual = new UsualNorm()
  for (let i = 0; i < 99; i++) usual.add(1)
  assert.is(usual.limit(10), 0, 'not known yet')
  usual.add(1000)
  assert.is(usual.limit(10), 10)
  for (let i = 1; i <= 100; i++) usual.add(i)
  assert.is(usual.limit(10), 505)
  assert.is(usual.values.length, 100)
  assert.is(new UsualNorm(usual.values).limit(2), 101)
})

// ---- options ----

test('defaults', () => {
  const { seed, ...rest } = settings()
  assert.is(seed, '3')
  assert.equal(rest, {
    batchSize: 'auto',
    globalBatch: 256,
    memoryLimit: 0,
    steps: null,
    lr: 1e-4,
    schedule: 'constant',
    warmup: 0,
    minLr: 0,
    weightDecay: 0,
    decayAll: false,
    betas: [0.9, 0.999],
    eps: 1e-8,
    emaDecay: 0.9999,
    emaWarmup: true,
    clipNorm: 1,
    loss: 'hybrid',
    labelDropout: 0.1,
    checkpointEvery: 0,
    spikeFactor: 10,
    flip: false,
    maxSkipped: 5,
    rollbackLrFactor: 0.5,
  })
  assert.is(settings({ batchSize: 32 }).globalBatch, 32)
  assert.is(settings({ batchSize: 32, globalBatch: 64 }).globalBatch, 64)
  assert.is(settings({ checkpointing: 'block' }).checkpointEvery, 1)
  assert.is(settings({ checkpointing: { every: 3 } }).checkpointEvery, 3)
  assert.is(settings({ memoryLimit: '4GB' }).memoryLimit, 4e9)
  const plain = completeConfig({ ...tiny, learnSigma: false, nullClass: false })
  assert.is(resolveSettings({}, plain).loss, 'mse')
  assert.is(resolveSettings({}, plain).labelDropout, 0)
})

test('amounts of memory', () => {
  const good: [unknown, number][] = [
    [1, 1],
    ['4GB', 4e9],
    ['4 GB', 4e9],
    ['1.5GiB', 1.5 * 2 ** 30],
    ['500M', 5e8],
    ['100kB', 1e5],
    ['64 KiB', 65536],
    ['12', 12],
  ]
  for (const [value, bytes] of good) assert.is(parseBytes(value), bytes, String(value))
  for (const bad of [0, -1, 1.5, '', '0', 'GB', '4 gigabytes', '-4GB', '4GBB', '1e9', null, {}]) {
    assert.is(parseBytes(bad), undefined, String(bad))
  }
})

const wrong: [options: Record<string, unknown>, message: RegExp][] = [
  [{ batchSize: 0 }, /positive integer or 'auto' for batchSize but got 0/],
  [{ globalBatch: 1.5 }, /an integer .* for globalBatch but got 1.5/],
  [{ memoryLimit: 'lots' }, /'4GB' for memoryLimit but got 'lots'/],
  [{ steps: 0 }, /of at least 1 for steps/],
  [{ lr: -1 }, /at least 0 for lr but got -1/],
  [{ lr: Number.NaN }, /lr/],
  [{ schedule: 'step' }, /'constant', 'linear', 'cosine' or a function of the step for schedule/],
  [{ betas: [0.9] }, /two numbers .* for betas/],
  [{ betas: [0.9, 1] }, /less than 1 for betas/],
  [{ eps: 0 }, /a positive number for eps/],
  [{ emaDecay: 1.1 }, /from 0 to 1 for emaDecay/],
  [{ clipNorm: -1 }, /clipNorm/],
  [{ loss: 'l1' }, /'hybrid' or 'mse' for loss/],
  [{ labelDropout: 2 }, /labelDropout/],
  [{ checkpointing: { every: 0 } }, /'none', 'block' or \{ every: k \} for checkpointing/],
  [{ spikeFactor: 0.5 }, /at least 1, or 0 for spikeFactor/],
  [{ seed: -1 }, /seed/],
  [{ rollbackLrFactor: 2 }, /rollbackLrFactor/],
  [{ resume: '' }, /resume/],
  [{ samples: { rows: 0 } }, /samples.rows/],
  [{ onBadItem: 'ignore' }, /'skip' or 'error' for onBadItem/],
  [{ learningRate: 1 }, /no option 'learningRate'/],
  [{ warmUp: 1 }, /no option 'warmUp'. Did you mean 'warmup'/],
]

for (const [options, message] of wrong) {
  test(`refused: ${JSON.stringify(options)}`, () => {
    assert.throws(
      () => check(trainSchema, options),
      (error: unknown) => {
        assert.instance(error, DiTError)
        assert.is((error as DiTError).code, 'ERR_DIT_OPTION')
        assert.match((error as DiTError).message, message)
        return true
      },
    )
  })
}

test('options that do not go together, or not with the model', () => {
  const plain = completeConfig({ ...tiny, learnSigma: false, nullClass: false })
  assert.throws(() => settings({ schedule: 'cosine' }), /which schedule 'cosine' needs/)
  assert.throws(() => settings({ schedule: 'cosine', steps: 5, warmup: 5 }), /less than steps, 5/)
  assert.throws(() => settings({ schedule: 'cosine', steps: 50, minLr: 1 }), /at most lr/)
  assert.throws(() => resolveSettings({ loss: 'hybrid' }, plain), /does not learn the variance/)
  assert.throws(() => resolveSettings({ labelDropout: 0.1 }, plain), /no null class/)
})

// ---- changed options ----

const model: TrainedModel = {
  config,
  diffusion: defaultSchedule,
  precision: 'fp32',
  classNames: { 0: 'lying' },
}

function refusal(
  change: { options?: TrainOptions; model?: Partial<TrainedModel>; fingerprint?: object },
  allowed?: string[],
): string {
  const was = { settings: settings(), model, fingerprint: { length: 9 } }
  const is = {
    settings: resolveSettings(change.options ?? {}, config, was.settings),
    model: { ...model, ...change.model },
    fingerprint: { ...was.fingerprint, ...change.fingerprint },
  }
  try {
    checkUnchanged('runs/x', was, is, allowed)
    return ''
  } catch (error) {
    assert.is((error as DiTError).code, 'ERR_DIT_OPTION')
    return (error as Error).message
  }
}

test('a resume with other options names each, with both values', () => {
  assert.is(refusal({}), '')
  const harmless: TrainOptions = { steps: 9, batchSize: 2, memoryLimit: 9, checkpointing: 'block' }
  assert.is(refusal({ options: harmless }), '', 'these change no result but rounding')
  const message = refusal({
    options: { lr: 2e-4, betas: [0.9, 0.95], seed: 4, schedule: (step) => step },
    model: { precision: 'bf16', config: { ...config, depth: 3 } },
    fingerprint: { length: 10 },
  })
  assert.match(message, /^runs\/x was made with other options: /)
  for (const part of [
    'lr was 0.0001 and is 0.0002',
    'betas was [0.9,0.999] and is [0.9,0.95]',
    "seed was '3' and is '4'",
    "schedule was 'constant' and is 'function'",
    "precision was 'fp32' and is 'bf16'",
    'config.depth was 2 and is 3',
    'data.length was 9 and is 10',
  ]) {
    assert.ok(message.includes(part), `${part}\n${message}`)
  }
  assert.is(message.split(' was ').length, 9, message)
})

test('allowChanges names what may differ', () => {
  const change = { options: { lr: 1 }, fingerprint: { length: 10, kind: 'idx' } }
  assert.match(refusal(change, ['lr']), /data.length was 9 and is 10; data.kind was undefined/)
  assert.match(refusal(change, ['lr', 'data.length']), /other options: data.kind/)
  assert.is(refusal(change, ['lr', 'data']), '')
  assert.match(refusal(change, ['rate']), /allowChanges: there is no 'rate', only globalBatch, lr/)
})

test('steps matter where the learning rate depends on them', () => {
  const was = settings({ schedule: 'cosine', steps: 100 })
  const is = resolveSettings({ steps: 200 }, config, was)
  assert.throws(
    () => checkUnchanged('x', { settings: was, model }, { settings: is, model }),
    /steps was 100 and is 200/,
  )
  checkUnchanged('x', { settings: was, model }, { settings: is, model }, ['steps'])
})

test('what is not given is as it was; a function must be given again', () => {
  const was = settings({ lr: 3e-4, schedule: 'linear', steps: 100, flip: true })
  assert.equal(resolveSettings({}, config, was), was)
  const function_ = settings({ schedule: (step) => step })
  assert.throws(
    () => resolveSettings({}, config, function_),
    /the function that the training began/,
  )
  assert.is(resolveSettings({ schedule: (step) => step }, config, function_).schedule, 'function')
})

// ---- images for a model of latents ----

test('images become posteriors, a few per job, in their order', async () => {
  const [height, width, n] = [512, 512, 3] // one per job
  const pixels = 3 * height * width
  const sizes: number[] = []
  const runAll: Engine['runAll'] = async (parts) => {
    const asked: EncodeRequest[] = []
    const model = { encode: (request: EncodeRequest) => asked.push(request) } as unknown as Model
    for (const { start } of parts) start(model)
    // The mean is the image's first number, the deviation its second; 2 latents of 2 numbers.
    return parts
      .map(({ finish }, i) => {
        const { images, n: rows, moments } = asked[i] as EncodeRequest
        assert.ok(moments)
        sizes.push(rows)
        const floats = Array.from({ length: rows }, (_, row) => {
          const [first, second] = images.subarray(row * pixels)
          return [first, first, second, second]
        }).flat() as number[]
        return { finish, done: { floats: Float32Array.from(floats) } as unknown as DoneEvent }
      })
      .reverse() // jobs may end in any order
      .map(({ finish, done }) => finish(done))
  }
  const x = new Float32Array(n * pixels)
  for (let i = 0; i < n; i++) x.set([i + 0.25, i + 0.5], i * pixels)
  const batch = {
    x,
    deviation: null,
    labels: Int32Array.of(2, 0, 1),
    position: 3,
    waited: 0,
    skipped: [],
  }
  const data = {
    kind: 'images',
    shape: [3, height, width],
    scale: 1,
    shift: 0,
  } as never as OpenData
  const vae = { scalingFactor: 0.5, shiftFactor: 0.125 } as VaeConfig
  const { signal } = new AbortController()
  const engine = { runAll } as unknown as Engine
  const rows = await toRows(batch, data, vae, engine, signal)
  assert.equal(sizes, [1, 1, 1])
  assert.equal([...rows.x], [0.25, 0.25, 1.25, 1.25, 2.25, 2.25])
  assert.equal([...(rows.deviation as Float32Array)], [0.5, 0.5, 1.5, 1.5, 2.5, 2.5])
  assert.equal([rows.n, rows.scale, rows.shift, [...rows.labels]], [3, 0.5, 0.125, [2, 0, 1]])

  const asIs = await toRows(batch, data, undefined, engine, signal)
  assert.is(asIs.x, x, 'a model of pixels')
  assert.is(asIs.deviation, null)
})

// ---- rows for the native part ----

test('a step is cut into jobs of at most 4 MiB, of whole micro-batches', async () => {
  const large = completeConfig({ ...tiny, latentSize: 128, patchSize: 16 })
  const asked: AccumulateRequest[] = []
  const native = { train: () => 0, accumulate: (job: AccumulateRequest) => asked.push(job) }
  const result = { outcome: 'applied', step: 1, gradNorm: 1, quartileLoss: [] }
  const engine = {
    async run(start: (model: Model) => number) {
      start({ ...native, apply: () => 0 } as unknown as Model)
      return { trainer: { microBatch: 24, step: 0 }, step: result }
    },
  } as unknown as Engine
  const host = { engine, model: { ...model, config: large }, began() {}, async release() {} }
  const trainer = await Trainer.open(host, {}, resolveSettings({}, large))
  const n = 100
  const size = 128 * 128
  const row = (i: number, value: number) => new Float32Array(size).fill(i + value)
  const all = (value: number) => {
    const data = new Float32Array(n * size)
    for (let i = 0; i < n; i++) data.set(row(i, value), i * size)
    return { data, shape: [n, 1, 128, 128] }
  }
  const y = Array.from({ length: n }, (_, i) => i % 3)
  const t = y.map((_, i) => i)
  const drop = y.map((label) => label === 1)

  const firsts = (jobs: AccumulateRequest[]) => jobs.map(({ firstRow, n }) => [firstRow, n])
  await trainer.step({ x: all(0.25), y })
  assert.equal(
    firsts(asked),
    [
      [0, 48],
      [48, 48],
      [96, 4],
    ],
    '64 rows are 4 MiB, 48 two micro-batches',
  )
  assert.ok(asked.every(({ noise, timesteps, drop }) => (noise ?? timesteps ?? drop) === null))

  asked.length = 0
  await trainer.step({ x: all(0.25), y, t, drop, noise: all(0.5) })
  assert.equal(
    firsts(asked),
    Array.from({ length: 5 }, (_, i) => [24 * i, i < 4 ? 24 : 4]),
  )
  for (const job of asked) {
    const { firstRow, n: rows, x, noise, labels, timesteps, globalBatch } = job
    assert.is(globalBatch, n)
    assert.is(x.length, rows * size)
    for (let i = 0; i < rows; i++) {
      const at = firstRow + i
      const numbers = [x[i * size], noise?.[i * size], labels[i], timesteps?.[i], job.drop?.[i]]
      assert.equal(numbers, [at + 0.25, at + 0.5, at % 3, at, at % 3 === 1 ? 1 : 0])
    }
  }
})

// ---- metrics.jsonl ----

test('lines after a checkpoint are cut when the training goes on from it', async () => {
  const file = path.join(temporaryFolder(), 'metrics.jsonl')
  const first = await MetricsLog.open(file, 0)
  await first.add({ step: 1 })
  const { bytes } = first
  await first.add({ step: 2, loss: Number.NaN })
  await first.close()
  assert.is(readFileSync(file, 'utf8'), '{"step":1}\n{"step":2,"loss":null}\n')
  appendFileSync(file, '{"step":3,"lo') // killed here

  const second = await MetricsLog.open(file, bytes)
  await second.add({ step: 2 })
  await second.close()
  assert.is(readFileSync(file, 'utf8'), '{"step":1}\n{"step":2}\n')

  const third = await MetricsLog.open(file, 0)
  await third.close()
  assert.is(readFileSync(file, 'utf8'), '', 'a new training')
  await rejects(() => MetricsLog.open(path.join(file, 'x'), 0), 'ERR_DIT_FILE', /not a folder/)
})

// ---- checkpoints ----

/** Writes zeros for every tensor, as far as it gets. */
function standIn(fail = () => false): Engine {
  const save = async ({ path: file, header, tensors }: SaveRequest) => {
    if (fail()) {
      await writeFile(file, header.subarray(0, 100))
      throw new DiTError('ERR_DIT_FILE', `Cannot write ${file}: no space left on the disk (ENOSPC)`)
    }
    const json = JSON.parse(Buffer.from(header.subarray(8)).toString())
    const sizes = tensors.map(({ name, dtype }) => {
      const { shape } = json[name] as { shape: number[] }
      return itemSize[dtype] * shape.reduce((product, size) => product * size, 1)
    })
    const zeros = Buffer.alloc(sizes.reduce((sum, size) => sum + size, 0))
    await writeFile(file, Buffer.concat([header, zeros]))
  }
  return { save } as unknown as Engine
}

function stateAt(step: number) {
  const { classNames, ...rest } = model
  return newState({
    step,
    settings: { ...settings(), batchSize: 4 },
    lrFactor: 1,
    norms: [0.1, 1 / 3],
    skippedSteps: 0,
    skippedInRow: 0,
    model: {
      precision: rest.precision,
      config: { ...config },
      diffusion: { ...rest.diffusion },
      classNames: { ...classNames },
    },
    data: { position: 8 * step, skippedItems: 0, fingerprint: { length: 9 }, metricsBytes: 0 },
  })
}

const list = (folder: string) => readdirSync(path.join(folder, 'checkpoints')).sort()

test('the last few checkpoints are kept, and latest is the newest', async () => {
  const folder = path.join(temporaryFolder(), 'deep/run')
  const run = await RunFolder.open(folder)
  assert.is(await run.latest(), undefined)
  await run.expectNew()
  for (const step of [10, 20, 30]) await run.save(standIn(), model, stateAt(step), 2)
  assert.equal(list(folder), ['latest', 'step-0000020', 'step-0000030'])
  assert.is(readlinkSync(path.join(folder, 'checkpoints/latest')), 'step-0000030')
  await rejects(() => run.expectNew(), 'ERR_DIT_OPTION', /Give resume \(--resume\)/)

  // From an earlier one: what is later stays, what is written next is the latest.
  await run.save(standIn(), model, stateAt(20), 2)
  assert.equal(list(folder), ['latest', 'step-0000020', 'step-0000020.2', 'step-0000030'])
  await run.save(standIn(), model, stateAt(25), 2)
  assert.equal(list(folder), ['latest', 'step-0000020.2', 'step-0000025', 'step-0000030'])
  assert.is(readlinkSync(path.join(folder, 'checkpoints/latest')), 'step-0000025')
})

test('a checkpoint says what it holds, and DiT.load finds its weights', async () => {
  const run = await RunFolder.open(temporaryFolder())
  const folder = await run.save(standIn(), model, stateAt(7), 1)
  assert.equal(await readState(folder), stateAt(7))
  const tensors = await readTensors(folder, config)
  assert.equal(Object.keys(tensors), ['model', 'ema', 'expAvg', 'expAvgSq'])
  assert.equal(
    new Set(Object.values(tensors).map((sources) => sources.map(({ name }) => name).join())).size,
    1,
  )
  const latest = (await run.latest()) as string
  for (const weights of ['ema', 'model', undefined] as const) {
    const source = await resolveSource(latest, weights ? { weights } : {})
    assert.is(source.weights, weights ?? 'ema')
    assert.match(source.description, new RegExp(`${weights ?? 'ema'}.safetensors, `))
    assert.equal(source.dit.config, config)
    assert.equal(source.id2label, { 0: 'lying' })
  }
  await rejects(
    () => readTensors(folder, completeConfig({ ...tiny, depth: 3 })),
    'ERR_DIT_FORMAT',
    /missing: blocks.2/,
  )
})

test('a failed save leaves the checkpoints as they were, and nothing else', async () => {
  const folder = temporaryFolder()
  const run = await RunFolder.open(folder)
  await run.save(standIn(), model, stateAt(1), 1)
  let files = 0
  const failing = standIn(() => ++files === 3)
  await rejects(() => run.save(failing, model, stateAt(2), 1), 'ERR_DIT_FILE', /no space left/)
  assert.equal(list(folder), ['latest', 'step-0000001'])
  assert.equal(await readState((await run.latest()) as string), stateAt(1))
  await run.close()
})

test('what a killed training left half done is removed; without latest the last step is it', async () => {
  const folder = temporaryFolder()
  const run = await RunFolder.open(folder)
  await run.save(standIn(), model, stateAt(1), 3)
  for (const name of ['step-0000002.1-ab.tmp', 'step-0000001.old.tmp', 'latest.tmp']) {
    mkdirSync(path.join(folder, 'checkpoints', name))
  }
  await run.close()
  const again = await RunFolder.open(folder)
  assert.equal(list(folder), ['latest', 'step-0000001'])
  unlinkSync(path.join(folder, 'checkpoints/latest'))
  assert.match((await again.latest()) as string, /step-0000001$/)
})

// ---- one training a folder ----

const lock = (folder: string) => path.join(folder, 'lock')

test('a folder is one training’s until it is closed', async () => {
  const folder = temporaryFolder()
  const run = await RunFolder.open(folder)
  await rejects(() => RunFolder.open(folder), 'ERR_DIT_BUSY', /in use: this process trains there/)
  assert.is(await RunFolder.at(folder).latest(), undefined, 'it can be looked at')
  await run.close()
  await run.close()
  assert.equal(readdirSync(folder), ['checkpoints'])
  await (await RunFolder.open(folder)).close()
  assert.is(await RunFolder.at(path.join(folder, 'nowhere')).latest(), undefined)
})

test('a lock that a process left which has ended is taken over', async () => {
  const folder = temporaryFolder()
  const run = await RunFolder.open(folder)
  const own = readlinkSync(lock(folder))
  await run.close()
  const { pid } = spawnSync(process.execPath, ['--version'])
  const stale = [
    own.replace(/process \d+/, `process ${pid}`),
    own.replace(/started \d+/, 'started 1'), // the number is another process's now
    'something else',
  ]
  for (const text of stale) {
    symlinkSync(text, lock(folder))
    await (await RunFolder.open(folder)).close()
    assert.equal(readdirSync(folder), ['checkpoints'])
  }
  symlinkSync(own.replace(/on .*/, 'on another-machine'), lock(folder))
  const elsewhere = new RegExp(`process ${process.pid} on another-machine.*remove .*lock$`)
  await rejects(() => RunFolder.open(folder), 'ERR_DIT_BUSY', elsewhere)
})

test('of many that want a stale lock, one gets it', async () => {
  const folder = temporaryFolder()
  for (let round = 0; round < 20; round++) {
    symlinkSync(`process 1 started 1 on ${hostname()}`, lock(folder))
    const tried = await Promise.allSettled(Array.from({ length: 8 }, () => RunFolder.open(folder)))
    const got = tried.filter((one) => one.status === 'fulfilled')
    assert.is(got.length, 1)
    await (got[0] as PromiseFulfilledResult<RunFolder>).value.close()
  }
})

const damages: [name: string, change: (json: Record<string, unknown>) => unknown, RegExp][] = [
  ['another format', (json) => ({ ...json, formatVersion: 2 }), /state of format 1.*got format 2/],
  ['no step', ({ step: _, ...json }) => json, /step/],
  ['a negative step', (json) => ({ ...json, step: -1 }), /step/],
  ['no object', () => [], /format/],
]

for (const [name, change, message] of damages) {
  test(`a damaged trainer.json: ${name}`, async () => {
    const folder = temporaryFolder()
    const json = JSON.parse(JSON.stringify(stateAt(1)))
    await writeFile(path.join(folder, 'trainer.json'), JSON.stringify(change(json)))
    await rejects(() => readState(folder), 'ERR_DIT_FORMAT', message)
  })
}

test('a folder that is no checkpoint', async () => {
  await rejects(() => readState(temporaryFolder()), 'ERR_DIT_FILE', /no checkpoint of a training/)
})

test.run()
