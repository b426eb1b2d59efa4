// dit.trainer and dit.train: what a step computes, exact resumes, what goes wrong and how it goes on.
// timeout: 120s
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import {
  DiT,
  type StepMetrics,
  type TrainEvent,
  type TrainerOptions,
  type TrainingItem,
} from '../lib/index.js'
import { runModule, runModuleWithin } from './helpers/child.js'
import { rejects, temporaryFolder } from './helpers/files.js'
import {
  collect,
  endless,
  idxFolder,
  item,
  ofType,
  quick,
  rows,
  some,
  tiny,
  tinyModel,
  trainTiny,
  weights,
} from './helpers/training.js'

const latest = (out: string) => path.join(out, 'checkpoints/latest')
const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length
const losses = (events: TrainEvent[]) => ofType(events, 'step').map(({ loss }) => loss)

// ---- step by step ----

test('trainer.step: the loss falls', async () => {
  await using dit = await tinyModel()
  const trainer = await dit.trainer({ ...quick, lr: 3e-3 })
  const all: StepMetrics[] = []
  for (let step = 0; step < 60; step++) all.push(await trainer.step(rows(8 * step, 8)))
  assert.equal(
    all.map(({ step }) => step),
    Array.from({ length: 60 }, (_, i) => i + 1),
  )
  assert.ok(all.every(({ outcome, skippedSteps }) => outcome === 'applied' && skippedSteps === 0))
  const mse = all.map((metrics) => metrics.mse)
  // A fresh model predicts zero, so its error is the noise's variance.
  assert.ok(Math.abs((mse[0] as number) - 1) < 0.2, `${mse[0]}`)
  assert.ok(mean(mse.slice(-10)) < 0.75 * mean(mse.slice(0, 10)), `${mse}`)
  for (const { loss, mse, vb, lr, gradNorm, quartileLoss, imagesPerSecond } of all) {
    assert.ok(Math.abs(loss - mse - vb) < 1e-6 * Math.abs(loss))
    assert.is(lr, 3e-3)
    assert.ok(gradNorm > 0 && imagesPerSecond > 0)
    assert.is(quartileLoss.length, 4)
  }
})

test('trainer.step: timesteps, noise and dropped labels can be given', async () => {
  await using one = await tinyModel()
  await using two = await tinyModel()
  const { x, y } = rows(0, 4)
  const noise = { data: Float32Array.from(x.data, (_, i) => Math.sin(i)), shape: x.shape }
  const given = { x, y, noise, t: [0, 250, 500, 999], drop: [false, true, false, false] }
  const metrics: StepMetrics[] = []
  for (const [dit, seed] of [
    [one, 1],
    [two, 2],
  ] as const) {
    const trainer = await dit.trainer({ batchSize: 2, seed })
    metrics.push(await trainer.step(given))
    await trainer.close()
  }
  const [first, second] = metrics as [StepMetrics, StepMetrics]
  assert.is(first.loss, second.loss, 'nothing was random')
  assert.is(first.gradNorm, second.gradNorm)
  assert.ok(first.quartileLoss.every(Number.isFinite))
  await using trainer = await one.trainer({ seed: 1 })
  const { quartileLoss, rows: count } = await trainer.step({ x, y, noise, t: 300 })
  assert.equal(quartileLoss.map(Number.isNaN), [true, false, true, true])
  assert.is(count, 4)
})

test('trainer.step: wrong arguments', async () => {
  await using dit = await tinyModel()
  await using trainer = await dit.trainer(quick)
  const { x, y } = rows(0, 2)
  const refused = (input: object, code: 'ERR_DIT_OPTION' | 'ERR_DIT_SHAPE', message: RegExp) =>
    rejects(() => trainer.step({ x, y, ...input }), code, message)
  await refused({ x: [1] }, 'ERR_DIT_OPTION', /Tensor .* for x/)
  await refused({ x: { ...x, shape: [2, 1, 4, 16] } }, 'ERR_DIT_SHAPE', /\[n, 1, 8, 8\] for x/)
  await refused({ y: [1] }, 'ERR_DIT_SHAPE', /2 labels for y but got 1/)
  await refused({ y: 4 }, 'ERR_DIT_OPTION', /a class from 0 to 2, or 3 for no class/)
  await refused({ y: new Float32Array(32) }, 'ERR_DIT_OPTION', /class numbers or names for y/)
  await refused({ t: 1000 }, 'ERR_DIT_OPTION', /0 to 999/)
  await refused({ t: 1.5 }, 'ERR_DIT_OPTION', /integers for t but got 1.5/)
  await refused({ t: [1] }, 'ERR_DIT_SHAPE', /2 timesteps for t but got 1/)
  await refused({ drop: [true] }, 'ERR_DIT_SHAPE', /2 values for drop but got 1/)
  await refused({ noise: rows(0, 1).x }, 'ERR_DIT_SHAPE', /noise/)
  await rejects(() => trainer.step(undefined as never), 'ERR_DIT_OPTION', /an object \{ x, y \}/)
  await rejects(() => trainer.step({ x, y: 1, foo: 5 } as never), 'ERR_DIT_OPTION', /no "?'?foo/)
  assert.is((await trainer.step({ x, y: 1 })).step, 1, 'and it still works')
})

test('trainer.save and trainer.resume: the steps that follow are the same, bit for bit', async () => {
  const folder = temporaryFolder()
  const options = { ...quick, schedule: 'linear', warmup: 8 } as const
  const checkpoint = (name: string) => path.join(folder, name)
  {
    await using dit = await tinyModel()
    const trainer = await dit.trainer(options)
    for (let step = 0; step < 9; step++) {
      if (step === 4) await trainer.save(checkpoint('four'))
      await trainer.step(rows(8 * step, 8))
    }
    await trainer.save(checkpoint('nine'))
  }
  await using dit = await DiT.create(tiny, { precision: 'fp32', threads: 1, seed: 99 })
  const trainer = await dit.trainer()
  await trainer.step(rows(0, 8))
  await trainer.resume(checkpoint('four'))
  assert.is(trainer.steps, 4)
  for (let step = 4; step < 9; step++) {
    const { lr } = await trainer.step(rows(8 * step, 8))
    assert.is(lr, (1e-3 * Math.min(8, step + 1)) / 8)
  }
  await trainer.save(checkpoint('again'))
  assert.equal(weights(checkpoint('again')), weights(checkpoint('nine')))

  await trainer.save(checkpoint('again')) // replaced
  assert.equal(readdirSync(folder).sort(), ['again', 'four', 'nine'])
  await rejects(() => trainer.save(folder), 'ERR_DIT_FILE', /holds no checkpoint/)
  await rejects(() => trainer.resume(folder), 'ERR_DIT_FILE', /no checkpoint of a training/)
  await rejects(() => trainer.resume(''), 'ERR_DIT_OPTION', /path for folder/)
  await trainer.close()
  await using other = await dit.trainer({ lr: 5 })
  await rejects(() => other.resume(checkpoint('four')), 'ERR_DIT_OPTION', /lr was 0.001 and is 5/)
})

for (const checkpointing of ['block', { every: 2 }] as const) {
  test(`checkpointing ${JSON.stringify(checkpointing)}: the same bits`, async () => {
    const states = []
    for (const policy of ['none', checkpointing] as const) {
      const folder = path.join(temporaryFolder(), 'checkpoint')
      await using dit = await tinyModel()
      await using trainer = await dit.trainer({ ...quick, checkpointing: policy })
      for (let step = 0; step < 3; step++) await trainer.step(rows(8 * step, 8))
      await trainer.save(folder)
      states.push(weights(folder))
    }
    assert.equal(states[0], states[1])
  })
}

test('one trainer at a time, one thing at a time', async () => {
  await using dit = await tinyModel()
  const trainer = await dit.trainer(quick)
  await rejects(() => dit.trainer(), 'ERR_DIT_BUSY', /end that first/)
  await rejects(() => collect(dit.train(some(8))), 'ERR_DIT_BUSY', /end that first/)
  const step = trainer.step(rows(0, 8))
  await rejects(() => trainer.step(rows(0, 8)), 'ERR_DIT_BUSY', /await what it does/)
  await rejects(() => trainer.save('x'), 'ERR_DIT_BUSY', /await what it does/)
  await step
  await trainer.close()
  await trainer.close()
  await rejects(() => trainer.step(rows(0, 8)), 'ERR_DIT_CLOSED', /make another/)
  await using another = await dit.trainer(quick)
  assert.is((await another.step(rows(0, 8))).step, 1)
  await dit.close()
  await rejects(() => another.step(rows(0, 8)), 'ERR_DIT_CLOSED', /model was closed/)
})

test('a training’s memory is freed at its end; the averaged weights stay', async () => {
  await using dit = await tinyModel()
  const before = dit.memory()
  const request = { x: rows(0, 2).x, t: 100, y: [0, 1] }
  const fresh = await dit.denoise(request)
  const trainer = await dit.trainer(quick)
  assert.ok(dit.memory().training > 2 * before.weights)
  const step = trainer.step(rows(0, 8))
  const closing = trainer.close()
  assert.is((await step).outcome, 'applied', 'what was under way is done first')
  await closing
  const after = dit.memory()
  assert.is(after.training, 0)
  assert.ok(after.total <= 2 * before.total, `${after.total} bytes, ${before.total} before`)
  const averaged = await dit.denoise(request)
  assert.not.equal(averaged, fresh)
  const target = path.join(temporaryFolder(), 'model.safetensors')
  await dit.save(target)
  await using saved = await DiT.load(target, { precision: 'fp32', threads: 1 })
  assert.equal(await saved.denoise(request), averaged)

  await collect(dit.train(some(8), { ...quick, steps: 1 }))
  assert.is(dit.memory().training, 0)
})

test('a model that came in bf16 is saved in fp32 once it was trained', async () => {
  const folder = temporaryFolder()
  const [narrow, wide] = ['narrow', 'wide'].map((name) => path.join(folder, `${name}.safetensors`))
  {
    await using dit = await tinyModel()
    await dit.save(narrow as string, { dtype: 'bf16' })
  }
  await using dit = await DiT.load(narrow as string, { precision: 'fp32', threads: 1 })
  await collect(dit.train(some(8), { ...quick, steps: 1 }))
  await dit.save(wide as string)
  const request = { x: rows(0, 2).x, t: 100, y: [0, 1] }
  await using saved = await DiT.load(wide as string, { precision: 'fp32', threads: 1 })
  assert.equal(await saved.denoise(request), await dit.denoise(request))
})

test('weight decay: matrices alone, or all with decayAll', async () => {
  const trained = async (options: TrainerOptions) => {
    await using dit = await tinyModel()
    await using trainer = await dit.trainer({ ...quick, lr: 0.1, weightDecay: 1, ...options })
    for (let i = 0; i < 3; i++) await trainer.step(rows(8 * i, 8))
    const folder = path.join(temporaryFolder(), 'checkpoint')
    await trainer.save(folder)
    return weights(folder)
  }
  const [matrices, all, none] = await Promise.all([
    trained({}),
    trained({ decayAll: true }),
    trained({ weightDecay: 0, decayAll: true }),
  ])
  assert.is(new Set([matrices, all, none].map((hashes) => hashes['model.safetensors'])).size, 3)
})

test('a batch size that does not fit the memory', async () => {
  await using dit = await tinyModel()
  await rejects(() => dit.trainer({ memoryLimit: '100kB' }), 'ERR_DIT_OOM', /one row at a time/)
  await using small = await dit.trainer({ globalBatch: 64, memoryLimit: '4MB' })
  assert.ok(small.info.batchSize >= 1 && small.info.batchSize < 64, `${small.info.batchSize}`)
  assert.ok(small.info.parameterBytes + small.info.activationBytes <= 4e6)
})

// ---- what is not sound ----

test('a batch with NaN is skipped and counted, and changes nothing', async () => {
  const folder = temporaryFolder()
  await using dit = await tinyModel()
  await using trainer = await dit.trainer(quick)
  for (let step = 0; step < 3; step++) await trainer.step(rows(8 * step, 8))
  await trainer.save(path.join(folder, 'before'))
  const poisoned = rows(24, 8)
  poisoned.x.data[100] = Number.NaN
  const { step, outcome, skippedSteps } = await trainer.step(poisoned)
  assert.equal([step, outcome, skippedSteps], [3, 'nonFinite', 1])
  await trainer.save(path.join(folder, 'after'))
  assert.equal(weights(path.join(folder, 'after')), weights(path.join(folder, 'before')))
  const next = await trainer.step(rows(32, 8))
  assert.equal([next.step, next.outcome, next.skippedSteps], [4, 'applied', 1])
})

test('a spike in the gradient is skipped once 100 steps tell what is usual', async () => {
  await using dit = await tinyModel()
  await using trainer = await dit.trainer({ ...quick, batchSize: 2 })
  const spike = () => {
    const { x, y } = rows(0, 2)
    const noise = { data: Float32Array.from(x.data, (_, i) => 1e4 * Math.sin(i)), shape: x.shape }
    return { x, y, noise, t: 500 }
  }
  assert.is((await trainer.step(spike())).outcome, 'applied', 'nothing is usual yet')
  for (let i = 1; i < 100; i++) await trainer.step(rows(2 * i, 2))
  const { step, outcome, gradNorm, skippedSteps } = await trainer.step(spike())
  assert.equal([step, outcome, skippedSteps], [100, 'spike', 1])
  assert.ok(gradNorm > 10, `${gradNorm}`)
  assert.is((await trainer.step(rows(200, 2))).outcome, 'applied')

  // What is usual is part of a checkpoint.
  const folder = path.join(temporaryFolder(), 'checkpoint')
  await trainer.save(folder)
  await trainer.close()
  const resumed = await dit.trainer()
  await resumed.resume(folder)
  const again = await resumed.step(spike())
  assert.equal([again.step, again.outcome, again.skippedSteps], [101, 'spike', 2])
  await resumed.close()

  await using tolerant = await dit.trainer({ ...quick, spikeFactor: 0 })
  for (let i = 0; i < 100; i++) await tolerant.step(rows(2 * i, 2))
  assert.is((await tolerant.step(spike())).outcome, 'applied')
})

/** Items of which those from `begin` to `end` are so large that nothing finite comes of them. */
function unsound(begin: number, end: number) {
  return function* (position: number): Generator<TrainingItem> {
    for (let i = position; ; i++) {
      const { image, label } = item(i)
      if (i >= begin && i < end) (image as Float32Array).fill(3e38)
      yield { image, label }
    }
  }
}

test('a few unsound batches are skipped, and training goes on', async () => {
  const events = await trainTiny({ steps: 6 }, unsound(16, 32))
  assert.equal(
    ofType(events, 'step').map(({ step, outcome, skippedSteps }) => [step, outcome, skippedSteps]),
    [
      [1, 'applied', 0],
      [2, 'applied', 0],
      [2, 'nonFinite', 1],
      [2, 'nonFinite', 2],
      [3, 'applied', 2],
      [4, 'applied', 2],
      [5, 'applied', 2],
      [6, 'applied', 2],
    ],
  )
  assert.is(ofType(events, 'step').at(-1)?.position, 64)
})

test('too many, and training goes back, at a lower rate, to other data', async () => {
  const out = temporaryFolder()
  // The batches of steps 8, 9 and 10.
  const events = await trainTiny({ steps: 12, out, saveEvery: 3, maxSkipped: 3 }, unsound(56, 80))
  const [rollback] = ofType(events, 'rollback')
  assert.is(ofType(events, 'rollback').length, 1)
  assert.equal([rollback?.from, rollback?.step, rollback?.lrFactor], [7, 6, 0.5])
  assert.match(rollback?.folder as string, /checkpoints\/step-0000006$/)
  const after = events.slice(events.indexOf(rollback as TrainEvent))
  const steps = ofType(after, 'step')
  assert.equal(
    steps.map(({ step, position }) => [step, position]),
    Array.from({ length: 6 }, (_, i) => [7 + i, 88 + 8 * i]),
  )
  assert.ok(steps.every(({ lr, outcome }) => lr === 5e-4 && outcome === 'applied'))
  const lines = readFileSync(path.join(out, 'metrics.jsonl'), 'utf8').trim().split('\n')
  assert.is(lines.filter((line) => JSON.parse(line).type === 'rollback').length, 1)

  // The lower rate is part of the state.
  await using dit = await tinyModel()
  const [step] = ofType(await collect(dit.train(endless, { out, resume: true, steps: 13 })), 'step')
  assert.equal([step?.step, step?.lr], [13, 5e-4])
})

test('too many without a checkpoint, or again and again: an error says what to do', async () => {
  await rejects(
    () => trainTiny({ steps: 9, maxSkipped: 2 }, unsound(8, 1e9)),
    'ERR_DIT_NONFINITE',
    /2 steps in a row after step 1 .*no checkpoint .*lower lr/,
  )
  const out = temporaryFolder()
  await rejects(
    () => trainTiny({ steps: 9, out, saveEvery: 1, maxSkipped: 2 }, unsound(8, 1e9)),
    'ERR_DIT_NONFINITE',
    /after going back .* 5 times/,
  )
  assert.ok(existsSync(latest(out)), 'what was good is there')
})

// ---- the loop ----

test('train: events, and the folder that is left', async () => {
  const out = path.join(temporaryFolder(), 'deep/run')
  const samples = { rows: 2, steps: 2, labels: [0, 2] }
  const events = await trainTiny({ steps: 6, out, saveEvery: 3, sampleEvery: 4, samples })
  assert.equal(
    events.map(({ type, step }) => `${type} ${step}`),
    [
      ...['start 0', 'step 1', 'step 2', 'step 3', 'checkpoint 3', 'step 4', 'samples 4'],
      ...['step 5', 'step 6', 'checkpoint 6'],
    ],
  )
  const [start] = ofType(events, 'start')
  assert.is(start?.seed, 7n)
  assert.is(start?.batchSize, 4)
  assert.is(start?.globalBatch, 8)
  assert.ok((start?.parameterBytes as number) > 0 && (start?.activationBytes as number) > 0)
  for (const event of ofType(events, 'step')) {
    assert.is(event.position, 8 * event.step)
    assert.ok(event.imagesPerSecond > 0 && event.secondsPerStep > 0)
    assert.ok(event.dataWait >= 0 && event.dataWaitShare >= 0 && event.dataWaitShare <= 1)
    assert.is(event.etaSeconds === 0, event.step === 6)
    assert.is(event.skippedItems, 0)
  }
  assert.equal(readdirSync(out).sort(), [
    'checkpoints',
    'metrics.jsonl',
    'model.safetensors',
    'samples',
  ])
  const lines = readFileSync(path.join(out, 'metrics.jsonl'), 'utf8').trim().split('\n')
  assert.equal(
    lines.map((line) => JSON.parse(line).loss),
    losses(events),
  )
  const grid = await sharp(path.join(out, 'samples/step-0000004.png')).metadata()
  assert.equal([grid.width, grid.height], [18, 18])
  const [made] = ofType(events, 'samples')
  assert.equal([made?.image.width, made?.file], [18, path.join(out, 'samples/step-0000004.png')])
})

test('train: what is sampled and saved are the averaged weights', async () => {
  const out = temporaryFolder()
  const fp32 = { precision: 'fp32', threads: 1 } as const
  const sampled = { steps: 3, seed: 5 }
  await using dit = await tinyModel()
  await collect(dit.train(endless, { ...quick, steps: 5, out }))
  const images = await dit.sample([0, 1, 2], sampled)
  for (const [source, options] of [
    [out, {}],
    [latest(out), {}],
    [latest(out), { weights: 'ema' }],
    [path.join(latest(out), 'ema.safetensors'), {}],
  ] as const) {
    await using loaded = await DiT.load(source, { ...fp32, ...options })
    assert.equal(await loaded.sample([0, 1, 2], sampled), images, `${source}`)
  }
  await using other = await DiT.load(latest(out), { ...fp32, weights: 'model' })
  assert.not.equal(await other.sample([0, 1, 2], sampled), images)
})

test('train: sampling goes on meanwhile', async () => {
  await using dit = await tinyModel()
  const during = dit.sample([0, 1, 2, 0, 1, 2], { steps: 60, seed: 1 })
  let steps = 0
  const training = (async () => {
    for await (const { type } of dit.train(endless, { ...quick, steps: 40 })) {
      if (type === 'step') steps++
    }
  })()
  const images = await during
  assert.is(images.length, 6)
  await training
  assert.is(steps, 40)
})

test('train: epochs, the mean of several steps', async () => {
  const data = idxFolder(15)
  const options = { epochs: 2, batchSize: 5, globalBatch: 5 }
  const steps = ofType(await trainTiny({ ...options, logEvery: 2 }, data), 'step')
  const single = ofType(await trainTiny(options, data), 'step')
  assert.equal(
    steps.map(({ step }) => step),
    [2, 4, 6],
  )
  assert.equal(
    steps.map(({ loss }) => loss),
    [0, 2, 4].map((i) => ((single[i]?.loss as number) + (single[i + 1]?.loss as number)) / 2),
  )
})

test('train: an array has epochs, and resumes within one', async () => {
  const data = some(12)
  const options = { epochs: 3, logEvery: 1 }
  const [start, ...steps] = await trainTiny(options, data)
  assert.ok(start?.type === 'start' && start.items === 12 && start.steps === 5)
  assert.is(ofType(steps, 'step').at(-1)?.epoch, 40 / 12)
  const out = temporaryFolder()
  const first = await trainTiny({ steps: 2, out }, data)
  const rest = await trainTiny({ steps: 5, out, resume: true }, data)
  assert.equal([...losses(first), ...losses(rest)], losses(steps))
  await rejects(
    () => trainTiny({ steps: 6, out, resume: true }, some(13)),
    'ERR_DIT_OPTION',
    /data.length was 12 and is 13/,
  )
})

test('train: data that ends, ends the training', async () => {
  function* ten() {
    yield* some(10)
  }
  const events = await trainTiny({}, ten())
  assert.equal(
    ofType(events, 'step').map(({ step, position, etaSeconds }) => [step, position, etaSeconds]),
    [
      [1, 8, undefined],
      [2, 10, undefined],
    ],
  )
  await rejects(() => trainTiny({ epochs: 1 }, ten()), 'ERR_DIT_OPTION', /steps instead/)
})

test('train: a learning rate of one’s own', async () => {
  const events = await trainTiny({ steps: 3, schedule: (step) => 1e-3 / step })
  assert.equal(
    ofType(events, 'step').map(({ lr }) => lr),
    [1e-3, 5e-4, 1e-3 / 3],
  )
})

// ---- resume ----

const long = { steps: 12, saveEvery: 12, schedule: 'cosine', warmup: 3 } as const

/** A training of 12 steps without interruption. */
async function uninterrupted() {
  const out = temporaryFolder()
  const events = await trainTiny({ ...long, out })
  return { losses: losses(events), weights: weights(latest(out)) }
}

for (const how of ['left', 'aborted'] as const) {
  test(`a training that was ${how} goes on, bit for bit`, async () => {
    const out = temporaryFolder()
    const want = await uninterrupted()
    const seen: TrainEvent[] = []
    const stop = new AbortController()
    await using dit = await tinyModel()
    const first = dit.train(endless, { ...quick, ...long, out, signal: stop.signal })
    const run = async () => {
      for await (const event of first) {
        seen.push(event)
        if (event.type !== 'step' || event.step !== 5) continue
        if (how === 'left') break
        stop.abort(new Error('enough'))
      }
    }
    if (how === 'left') await run()
    else {
      const error = await run().catch((reason: unknown) => reason)
      assert.is(error, stop.signal.reason)
    }
    assert.match(readdirSync(path.join(out, 'checkpoints')).join(), /step-0000005/)

    await using fresh = await DiT.create(tiny, { precision: 'fp32', threads: 1, seed: 2 })
    const rest = await collect(fresh.train(endless, { out, resume: true }))
    assert.equal([...losses(seen), ...losses(rest)], want.losses)
    assert.equal(weights(latest(out)), want.weights)
    const lines = readFileSync(path.join(out, 'metrics.jsonl'), 'utf8').trim().split('\n')
    assert.equal(
      lines.map((line) => JSON.parse(line).loss),
      want.losses,
    )
  })
}

test('a training goes on in another process, bit for bit', async () => {
  const out = temporaryFolder()
  const want = await uninterrupted()
  const source = (steps: number) => `
    import { endless, quick, tinyModel } from './test/helpers/training.ts'
    const dit = await tinyModel()
    const events = dit.train(endless, {
      ...quick, ...${JSON.stringify(long)}, out: ${JSON.stringify(out)}, resume: true,
    })
    for await (const event of events) if (event.type === 'step' && event.step === ${steps}) break
    await dit.close()`
  for (const steps of [7, 12]) {
    const { status, stderr } = await runModule(source(steps))
    assert.is(status, 0, stderr)
  }
  assert.equal(weights(latest(out)), want.weights)
})

test('dit.trainer goes on with what dit.train began, and the other way round', async () => {
  const out = temporaryFolder()
  const own = path.join(temporaryFolder(), 'own')
  await trainTiny({ steps: 2, out })
  {
    await using dit = await tinyModel()
    await using trainer = await dit.trainer()
    await trainer.resume(latest(out))
    await trainer.step(rows(16, 8))
    await trainer.save(own)
  }
  await trainTiny({ steps: 3, out, resume: true })
  assert.equal(weights(own), weights(latest(out)))
  const [step] = ofType(await trainTiny({ steps: 4, resume: own }), 'step')
  assert.equal([step?.step, step?.position], [4, 8], 'the data from its beginning')
})

test('a training goes on bit for bit in every precision of this machine', async () => {
  const [cpu] = await DiT.devices()
  assert.ok(cpu?.available && cpu.precisions.includes('fp32'))
  for (const precision of cpu.precisions) {
    const outs = [temporaryFolder(), temporaryFolder()] as const
    const run = async (out: string, steps: number) => {
      await using dit = await DiT.create(tiny, { precision, seed: 1 })
      assert.is(dit.precision, precision)
      await collect(dit.train(endless, { ...quick, out, steps, resume: true }))
    }
    await run(outs[0], 6)
    await run(outs[1], 2)
    await run(outs[1], 6)
    assert.equal(weights(latest(outs[0])), weights(latest(outs[1])), precision)
  }
})

test('resume: a new training needs a new folder; an old one, the same options', async () => {
  const out = temporaryFolder()
  await trainTiny({ steps: 2, out })
  await rejects(
    () => trainTiny({ steps: 1, out, resume: true, allowChanges: ['steps'] }),
    'ERR_DIT_OPTION',
    /at least the 2 that are made already, for steps/,
  )
  await rejects(() => trainTiny({ steps: 4, out }), 'ERR_DIT_OPTION', /Give resume/)
  await rejects(
    () => trainTiny({ steps: 4, out, resume: true, lr: 5e-3, clipNorm: 3, saveEvery: 1 }),
    'ERR_DIT_OPTION',
    /other options: lr was 0.001 and is 0.005; clipNorm was 1 and is 3\. .*allowChanges: \["lr","clipNorm"\]/,
  )
  await using deeper = await DiT.create({ ...tiny, depth: 3 }, { precision: 'fp32' })
  await rejects(
    () => collect(deeper.train(endless, { out, resume: true })),
    'ERR_DIT_OPTION',
    /config.depth was 2 and is 3/,
  )
  const allowed = await trainTiny({ steps: 3, out, resume: true, lr: 5e-3, allowChanges: ['lr'] })
  assert.equal(
    ofType(allowed, 'step').map(({ step, lr }) => [step, lr]),
    [[3, 5e-3]],
  )
  const done = await trainTiny({ steps: 3, out, resume: true, lr: 5e-3 })
  assert.equal(
    done.map(({ type }) => type),
    ['start'],
    'there is nothing left to do',
  )

  const other = temporaryFolder()
  const branch = await trainTiny({ steps: 4, out: other, resume: latest(out), lr: 5e-3 })
  assert.equal(
    ofType(branch, 'step').map(({ step }) => step),
    [4],
  )
  await rejects(() => trainTiny({ resume: true }), 'ERR_DIT_OPTION', /no out/)
  await rejects(() => trainTiny({ resume: other }), 'ERR_DIT_FILE', /no checkpoint of a training/)
  await rejects(() => trainTiny({ saveEvery: 2 }), 'ERR_DIT_OPTION', /nothing without out/)
  await rejects(() => trainTiny({ steps: 2, epochs: 2 }), 'ERR_DIT_OPTION', /beside steps/)
})

test('two trainings in one folder: the second is refused, in any process', async () => {
  const out = temporaryFolder()
  await using dit = await tinyModel()
  const events = dit.train(endless, { ...quick, out, steps: 100 })
  await events.next()
  const advice = new RegExp(`${out} is in use`)
  await rejects(() => trainTiny({ steps: 1, out, resume: true }), 'ERR_DIT_BUSY', advice)
  const { stdout, stderr } = await runModule(`
    import { collect, endless, quick, tinyModel } from './test/helpers/training.ts'
    const dit = await tinyModel()
    const options = { ...quick, out: ${JSON.stringify(out)}, steps: 1, resume: true }
    await collect(dit.train(endless, options)).catch(({ code, message }) => console.log(code, message))
    await dit.close()`)
  assert.match(stdout, new RegExp(`^ERR_DIT_BUSY .*process ${process.pid} trains there`), stderr)
  await events.return()
  await trainTiny({ steps: 1, out, resume: true })
})

test('a full disk while saving: the old checkpoint stays, training goes on', async () => {
  const out = temporaryFolder()
  await trainTiny({ steps: 2, out })
  const before = weights(latest(out))
  const source = `
    import { endless, quick, tinyModel } from './test/helpers/training.ts'
    const dit = await tinyModel()
    const told = []
    try {
      const options = { ...quick, out: ${JSON.stringify(out)}, resume: true, steps: 6, saveEvery: 2 }
      for await (const event of dit.train(endless, options)) told.push(event.type)
    } catch (error) {
      told.push(error.code)
    }
    console.log(told.join(' '))
    await dit.close()`
  const { stdout, stderr, status } = await runModuleWithin(64, source)
  assert.is(status, 0, stderr)
  assert.is(stdout.trim(), 'start step step warning step step ERR_DIT_FILE')
  assert.equal(readdirSync(path.join(out, 'checkpoints')).sort(), ['latest', 'step-0000002'])
  assert.equal(weights(latest(out)), before)
  await trainTiny({ steps: 3, out, resume: true }) // there is room again
})

test.run()
