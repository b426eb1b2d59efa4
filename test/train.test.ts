// dit.train: the loop, its folder, exact resumes, what goes wrong and how it goes on.
// timeout: 120s
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type TrainEvent, type TrainingItem } from '../lib/index.js'
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
const losses = (events: TrainEvent[]) => ofType(events, 'step').map(({ loss }) => loss)

// ---- what is not sound ----

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
