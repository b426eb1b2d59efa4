// Training through the binary by itself: what bindings.d.ts promises of it, whatever it is given.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type {
  AccumulateRequest,
  ApplyRequest,
  EncodeRequest,
  SaveRequest,
  TrainerRequest,
} from '../bindings.js'
import { ditTensors } from '../lib/formats/dit_names.js'
import type { TensorSource } from '../lib/formats/types.js'
import { describeSource } from '../lib/loading.js'
import { open, spec } from './helpers/addon.js'
import { fixture, temporaryFolder } from './helpers/files.js'

const count = 4 * 4
const trainerRequest: TrainerRequest = {
  seed: 3n,
  loss: 'mse',
  labelDropout: 0.1,
  beta1: 0.9,
  beta2: 0.999,
  eps: 1e-8,
  weightDecay: 0,
  decayAll: false,
  checkpointEvery: 0,
  microBatch: 2,
  memoryLimit: 0,
  globalBatch: 4,
  state: null,
}
const accumulateRequest: AccumulateRequest = {
  n: 2,
  x: new Float32Array(2 * count).map((_, i) => Math.sin(i)),
  deviation: null,
  scale: 1,
  shift: 0,
  labels: new Int32Array([0, 1]),
  firstRow: 0,
  globalBatch: 2,
  timesteps: null,
  noise: null,
  drop: null,
}
const applyRequest: ApplyRequest = { lr: 1e-2, emaDecay: 0.5, clipNorm: 0, skipAbove: 0 }
const saveRequest: SaveRequest = {
  path: '/nowhere',
  header: new Uint8Array(),
  part: 'dit',
  tensors: [],
}
const encodeRequest: EncodeRequest = {
  n: 1,
  height: 8,
  width: 8,
  images: new Float32Array(3 * 8 * 8),
  seeds: null,
  moments: false,
}

test('every field of the requests of training is checked', async () => {
  const { model, last } = open()
  const wrong: Record<string, unknown[]> = {
    // Of any type but the right one; negative where it counts something.
    seed: [1, -1n],
    loss: ['l2', 1],
    checkpointEvery: ['1', -1],
    microBatch: [null, -1, 1.5],
    memoryLimit: [1n, -1],
    globalBatch: ['4', -1],
    state: [undefined, 1, {}],
    n: ['2', -1, 0.5],
    x: [null, [1], new Float64Array(2 * count)],
    deviation: [undefined, [1], new Int32Array(1)],
    labels: [null, new Float32Array(2), [0, 1]],
    firstRow: [null, -1],
    timesteps: [undefined, new Float32Array(2)],
    noise: [undefined, new Uint8Array(2)],
    drop: [undefined, [true], new Uint8ClampedArray(2)],
    part: ['weights', 1],
    moments: [undefined, 1],
  }
  const asks = [
    [(value: never) => model.train(value), trainerRequest],
    [(value: never) => model.accumulate(value), accumulateRequest],
    [(value: never) => model.apply(value), applyRequest],
  ] as const
  const refused = (ask: (value: never) => number, value: object, name: string) => {
    try {
      ask(value as never)
    } catch (error) {
      assert.is((error as { code: string }).code, 'ERR_DIT_INTERNAL')
      // Names the field, or the word that it does not know.
      assert.match(
        (error as Error).message,
        new RegExp(`for (${name}|step) of|^Unknown (loss|part) `),
      )
      return
    }
    assert.unreachable(`${name} was taken`)
  }
  for (const [ask, request] of asks) {
    for (const value of [undefined, null, 1, {}])
      assert.throws(() => ask(value as never), /Expected/)
    for (const name of Object.keys(request)) {
      // What is not named above is a number.
      for (const value of wrong[name] ?? [undefined, null, '1', 1n]) {
        refused(ask, { ...request, [name]: value }, name)
      }
    }
  }
  const state = { step: 1, model: [], ema: [], expAvg: [], expAvgSq: [] }
  for (const name of Object.keys(state)) {
    const value = { ...trainerRequest, state: { ...state, [name]: name === 'step' ? -1 : null } }
    refused((request) => model.train(request), value, name)
  }
  for (const part of wrong.part as unknown[]) {
    refused((request) => model.save(request), { ...saveRequest, part }, 'part')
  }
  for (const moments of wrong.moments as unknown[]) {
    refused((request) => model.encode(request), { ...encodeRequest, moments }, 'moments')
  }
  await last(model.close())
})

test('training: what is asked for arrives, and the results are as typed', async () => {
  const { model, last } = open()
  const done = async (job: number) => {
    const event = await last(job)
    if (event.kind !== 'done') throw new Error(JSON.stringify(event))
    return event
  }
  const failed = async (job: number) => {
    const event = await last(job)
    return event.kind === 'failed' ? event.code : event.kind
  }
  const loaded = await done(model.load(spec))
  assert.is(loaded.trainer, null)
  assert.is(loaded.step, null)
  assert.is(model.info().trainerBytes, 0)
  assert.is(await failed(model.accumulate(accumulateRequest)), 'ERR_DIT_OPTION')
  assert.is(await failed(model.apply(applyRequest)), 'ERR_DIT_OPTION')
  for (const part of ['model', 'ema', 'expAvg', 'expAvgSq'] as const) {
    assert.is(await failed(model.save({ ...saveRequest, part })), 'ERR_DIT_OPTION')
  }
  assert.is(await failed(model.train({ ...trainerRequest, loss: 'hybrid' })), 'ERR_DIT_OPTION')
  assert.is(await failed(model.train({ ...trainerRequest, memoryLimit: 1 })), 'ERR_DIT_OOM')

  assert.is((await done(model.release())).trainer, null)

  const { trainer } = await done(model.train(trainerRequest))
  assert.ok(trainer)
  assert.equal(Object.keys(trainer), ['microBatch', 'step', 'parameterBytes', 'activationBytes'])
  assert.is(trainer.microBatch, 2)
  assert.is(trainer.step, 0)
  assert.is(model.info().trainerBytes, trainer.parameterBytes + trainer.activationBytes)

  const accumulated = await done(model.accumulate(accumulateRequest))
  assert.is(accumulated.step, null)
  const { step } = await done(model.apply(applyRequest))
  assert.ok(step)
  assert.is(step.outcome, 'applied')
  assert.is(step.step, 1)
  assert.is(step.rows, 2)
  assert.is(step.loss, step.mse)
  assert.is(step.vb, 0)
  assert.ok(step.gradNorm > 0)
  assert.instance(step.quartileLoss, Float64Array)
  assert.is(step.quartileLoss.length, 4)

  // Timesteps and drops are those given: the quarter of the losses tells.
  const given = { ...accumulateRequest, timesteps: new Int32Array([750, 999]) }
  await done(model.accumulate({ ...given, drop: new Uint8Array([1, 0]) }))
  const quarters = (await done(model.apply(applyRequest))).step?.quartileLoss ?? []
  assert.equal([...quarters].map(Number.isNaN), [true, true, true, false])
  // x is the mean of a Gaussian where there is a deviation: (mean + deviation z - shift) scale.
  const nothing = new Float32Array(2 * count)
  const lossOf = async (request: Partial<AccumulateRequest>) => {
    await done(model.accumulate({ ...given, ...request, noise: nothing }))
    const skip = { ...applyRequest, skipAbove: 1e-30 }
    const { step } = await done(model.apply(skip))
    assert.is(step?.outcome, 'spike')
    return step?.loss
  }
  const plain = await lossOf({})
  const shifted = accumulateRequest.x.map((value) => value / 2 + 3)
  const same = { x: shifted, deviation: nothing, scale: 2, shift: 3 }
  assert.ok(Math.abs(((await lossOf(same)) as number) / (plain as number) - 1) < 1e-3)
  assert.is.not(await lossOf({ deviation: new Float32Array(2 * count).fill(0.5) }), plain)

  await done(model.accumulate({ ...accumulateRequest, x: nothing.map(() => Number.NaN) }))
  assert.is((await done(model.apply(applyRequest))).step?.outcome, 'nonFinite')
  await done(
    model.accumulate({
      ...accumulateRequest,
      n: 1,
      x: nothing.slice(count),
      labels: new Int32Array(1),
    }),
  )
  assert.is((await done(model.apply(applyRequest))).step?.rows, 1)
  await last(model.close())
})

test('the four parts of a trainer are saved under their names and continued from', async () => {
  const folder = temporaryFolder()
  const parts = ['model', 'ema', 'expAvg', 'expAvgSq'] as const
  const specs = ditTensors(spec.dit.config).filter(({ optional }) => !optional)
  let offset = 0
  const places = specs.map(({ name, shape }) => {
    const strides = shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1))
    const place = { name, shape, strides, offset }
    offset += 4 * shape.reduce((a, b) => a * b, 1)
    return place
  })
  const save = async ({ model, last }: ReturnType<typeof open>, suffix: string) => {
    const bytes: Buffer[] = []
    for (const part of parts) {
      const file = path.join(folder, `${part}${suffix}`)
      const tensors = places.map(({ name, shape }) => {
        return { name, rowBegin: 0, rowEnd: shape[0] as number, dtype: 'F32' as const }
      })
      const event = await last(model.save({ ...saveRequest, path: file, part, tensors }))
      assert.is(event.kind, 'done', JSON.stringify(event))
      bytes.push(readFileSync(file))
    }
    return bytes
  }
  const sources = (part: string): TensorSource[] =>
    places.map(({ name, ...place }) => ({
      name,
      parts: [{ file: path.join(folder, `${part}1`), dtype: 'F32', ...place }],
    }))

  const first = open()
  await first.last(first.model.load(spec))
  await first.last(first.model.train(trainerRequest))
  for (let i = 0; i < 3; i++) {
    await first.last(first.model.accumulate(accumulateRequest))
    await first.last(first.model.apply(applyRequest))
  }
  const saved = await save(first, '1')
  for (const bytes of saved) assert.is(bytes.length, offset)
  assert.is(new Set(saved.map((bytes) => bytes.toString('latin1'))).size, 4)

  const second = open()
  await second.last(second.model.load({ ...spec, dit: { ...spec.dit, seed: 2n } }))
  const [model, ema, expAvg, expAvgSq] = parts.map(sources) as [
    TensorSource[],
    TensorSource[],
    TensorSource[],
    TensorSource[],
  ]
  const state = { step: 3, model, ema, expAvg, expAvgSq }
  const resumed = await second.last(second.model.train({ ...trainerRequest, state }))
  assert.is(resumed.kind === 'done' && resumed.trainer?.step, 3, JSON.stringify(resumed))
  const again = await save(second, '2')
  for (const [i, bytes] of saved.entries()) assert.ok(bytes.equals(again[i] as Buffer), parts[i])
  await Promise.all([first, second].map(({ model, last }) => last(model.close())))
})

test('encode: moments are means and deviations in the scale of the VAE', async () => {
  const described = await describeSource(fixture('diffusers_pipeline'), {
    vae: fixture('diffusers_pipeline/vae'),
    device: 'cpu',
    precision: 'fp32',
  })
  const vae = described.spec.vae
  assert.ok(vae)
  const { model, last } = open()
  assert.is((await last(model.load(described.spec))).kind, 'done')
  const size = 16
  const n = 2
  const channels = vae.config.latentChannels
  const images = new Float32Array(n * 3 * size * size).map((_, i) => Math.sin(i * 0.37))
  const encode = async (moments: boolean, seeds: bigint[] | null) => {
    const event = await last(
      model.encode({
        n,
        height: size,
        width: size,
        images,
        moments,
        seeds: seeds && BigUint64Array.from(seeds),
      }),
    )
    if (event.kind !== 'done' || !event.floats) throw new Error(JSON.stringify(event))
    return event as typeof event & { floats: Float32Array }
  }
  const mode = await encode(false, null)
  const moments = await encode(true, null)
  const [, , height = 0, width = 0] = mode.shape
  assert.equal(mode.shape, [n, channels, height, width])
  assert.equal(moments.shape, [n, 2 * channels, height, width])
  // A draw is (mean + deviation z - shift) scale: z has the mean 0 and the variance 1.
  const draws = await Promise.all(
    Array.from({ length: 40 }, (_, i) => encode(false, [BigInt(2 * i), BigInt(2 * i + 1)])),
  )
  const { scalingFactor, shiftFactor } = vae.config
  const half = channels * height * width
  let sum = 0
  let squares = 0
  for (let image = 0; image < n; image++) {
    for (let i = 0; i < half; i++) {
      const mean = moments.floats[2 * image * half + i] as number
      const deviation = moments.floats[(2 * image + 1) * half + i] as number
      const latent = mode.floats[image * half + i] as number
      assert.ok(
        Math.abs((mean - shiftFactor) * scalingFactor - latent) <= 1e-6 * (1 + Math.abs(mean)),
      )
      assert.ok(deviation >= Math.exp(-15) && deviation <= Math.exp(10))
      for (const draw of draws) {
        const value = draw.floats[image * half + i] as number
        const z = (value - latent) / (scalingFactor * deviation)
        sum += z / (draws.length * n * half)
        squares += z ** 2 / (draws.length * n * half)
      }
    }
  }
  assert.ok(Math.abs(sum) < 0.05, `mean ${sum}`)
  assert.ok(Math.abs(squares - 1) < 0.05, `variance ${squares}`)
  await last(model.close())
})

test.run()
