// dit.trainer: what a step computes, what it refuses, saving and going on, unsound batches.
// timeout: 120s
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type StepMetrics, type TrainerOptions } from '../lib/index.js'
import { rejects, temporaryFolder } from './helpers/files.js'
import { collect, quick, rows, some, tiny, tinyModel, weights } from './helpers/training.js'

const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length

/** All numbers of a part of a checkpoint, in the order of its file. */
function numbers(checkpoint: string, part: 'model' | 'ema'): Float32Array {
  const file = readFileSync(path.join(checkpoint, `${part}.safetensors`))
  const begin = 8 + Number(file.readBigUInt64LE()) // after the header
  return new Float32Array(file.buffer.slice(file.byteOffset + begin, file.byteOffset + file.length))
}

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

test('the averaged weights: a share of what they were, the rest of the new ones', async () => {
  for (const emaWarmup of [undefined, false]) {
    await using dit = await tinyModel()
    const options = { ...quick, lr: 0.1, ...(emaWarmup === false && { emaWarmup }) }
    await using trainer = await dit.trainer(options)
    const folder = path.join(temporaryFolder(), 'checkpoint')
    let before: Float32Array | undefined
    for (let step = 1; step <= 3; step++) {
      await trainer.step(rows(8 * step, 8))
      await trainer.save(folder)
      const [model, ema] = [numbers(folder, 'model'), numbers(folder, 'ema')]
      const kept = emaWarmup === false ? 0.9 : (1 + step) / (10 + step)
      if (before) {
        for (const [i, was] of before.entries()) {
          const want = kept * was + (1 - kept) * (model[i] as number)
          assert.ok(Math.abs((ema[i] as number) - want) < 1e-6, `${i}: ${ema[i]}, not ${want}`)
        }
      }
      before = ema
    }
  }
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

test.run()
