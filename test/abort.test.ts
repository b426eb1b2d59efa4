// Ending work early: abort, close, leaving a stream, callbacks that throw, processes and workers
// that end.
// timeout: 240s
import { getEventListeners } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type PreviewEvent, type ProgressEvent } from '../lib/index.js'
import { runModule } from './helpers/child.js'
import { fixture, rejects } from './helpers/files.js'

const options = { precision: 'fp32', threads: 1 } as const
const fashion = fixture('fashion_dit/fashion.pt')
const long = { steps: 900, output: 'latent' } as const

/** What a promise rejects with. */
async function reason(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error('expected a rejection')
}

/** A signal that is aborted with `because` at the n-th progress. */
function abortAt(n: number, because: unknown) {
  const controller = new AbortController()
  let count = 0
  const onProgress = () => {
    if (++count === n) controller.abort(because)
  }
  return { signal: controller.signal, onProgress }
}

test('abort: before, during and after; the reason is what the caller gave', async () => {
  await using dit = await DiT.load(fashion, options)
  const because = { the: 'reason' }
  const signal = AbortSignal.abort(because)
  assert.is(await reason(dit.sample(1, { signal })), because)
  assert.is(await reason(dit.stream(1, { signal }).next()), because)
  const x = { data: new Float32Array(256), shape: [1, 1, 16, 16] }
  assert.is(await reason(dit.denoise({ x, t: 1, y: 1, signal })), because)
  assert.is(await reason(DiT.load(fashion, { signal })), because)
  assert.is(await reason(DiT.create('DiT-S/8', { ...options, signal })), because)
  assert.is(await reason(dit.sample([1, 2], { ...long, ...abortAt(3, because) })), because)
  const timeout = AbortSignal.timeout(20)
  const error = (await reason(dit.sample(1, { ...long, signal: timeout }))) as DOMException
  assert.is(error.name, 'TimeoutError')

  const late = new AbortController()
  const [image] = await dit.sample(1, { steps: 2, seed: 1, signal: late.signal })
  late.abort()
  assert.equal((await dit.sample(1, { steps: 2, seed: 1 }))[0], image)
})

test('abort: calls leave nothing on a signal that outlives them, and many of them no warning', async () => {
  const warnings: string[] = []
  const onWarning = ({ message }: Error) => warnings.push(message)
  process.on('warning', onWarning)
  const size = { depth: 1, hidden: 48, heads: 2, patchSize: 64, latentSize: 512, channels: 3 }
  await using dit = await DiT.create({ ...size, numClasses: 10 }, options)
  const server = new AbortController()
  const { signal } = server
  const listeners = () => getEventListeners(signal, 'abort').length
  // Images in more than ten jobs, and more than ten calls.
  const labels = Array.from({ length: 64 }, () => 1)
  const leave = async () => {
    for await (const { type } of dit.stream(2, { steps: 3, signal })) if (type) return
  }
  const calls = [
    dit.sample(labels, { steps: 1, signal }),
    ...Array.from({ length: 12 }, () => dit.sample(3, { steps: 2, signal })),
    ...Array.from({ length: 12 }, leave),
  ]
  await sleep(1)
  assert.is(listeners(), 1)
  await Promise.all(calls)
  assert.is(listeners(), 0)
  // Where Node notes the signals that were derived from this one.
  for (const key of Object.getOwnPropertySymbols(signal)) {
    const kept = (signal as unknown as Record<symbol, unknown>)[key]
    if (kept instanceof Set) assert.is(kept.size, 0, String(key))
  }

  const because = new Error('the server ends')
  const ended = [...labels, ...labels].map((label) => reason(dit.sample(label, { signal })))
  await sleep(1)
  server.abort(because)
  for (const error of await Promise.all(ended)) assert.is(error, because)
  assert.is(listeners(), 0)
  assert.is(dit.stats().waiting, 0)
  await sleep(1)
  process.off('warning', onWarning)
  assert.equal(warnings, [])
})

test('abort: a call that is aborted already is not a call', async () => {
  await using dit = await DiT.load(fashion, { ...options, maxBatch: 1, maxQueue: 0 })
  const because = new Error('gone')
  const busy = dit.sample(1, { steps: 20 })
  assert.is(await reason(dit.sample(1, { signal: AbortSignal.abort(because) })), because)
  await busy
  const { refused, cancelled } = dit.stats()
  assert.equal({ refused, cancelled }, { refused: { busy: 0, deadline: 0 }, cancelled: 0 })
})

test('abort: its lanes are free within one step', async () => {
  await using dit = await DiT.load(fashion, options)
  const cancelled = new AbortController()
  const ended = new AbortController()
  let rounds = 0
  const counting = dit.sample(0, { ...long, signal: ended.signal, onProgress: () => rounds++ })
  const filling = dit.sample([1, 2, 3], { ...long, signal: cancelled.signal })
  const failures = Promise.all([reason(counting), reason(filling)])
  while (rounds < 5) await sleep(1)

  // All four lanes are taken, and it is less important: it waits until the three are given back.
  let first: number | undefined
  const onProgress = () => {
    first ??= rounds
  }
  const waiting = dit.sample(4, { steps: 3, priority: -1, onProgress })
  while (rounds < 10) await sleep(1)
  assert.is(first, undefined, 'there was a free lane before the abort')
  const before = rounds
  cancelled.abort('enough')
  await waiting
  // The round under way at the abort, and the one in which the next image takes its first step.
  const took = (first ?? Number.POSITIVE_INFINITY) - before
  assert.ok(took <= 2, `the lanes came back after ${took} rounds`)
  ended.abort('over')
  assert.equal(await failures, ['over', 'enough'])
})

test('abort: while a model is loaded', async () => {
  const controller = new AbortController()
  let after = 0
  const loading = DiT.create('DiT-B/4', {
    ...options,
    signal: controller.signal,
    onProgress: ({ loaded }) => {
      if (controller.signal.aborted) after++
      if (loaded > 0) controller.abort('stop')
    },
  })
  assert.is(await reason(loading), 'stop')
  assert.is(after, 0, 'progress after the abort')
})

test('close: during work, twice, and calls afterwards', async () => {
  const dit = await DiT.load(fashion, options)
  let started = () => {}
  const running = new Promise<void>((resolve) => {
    started = resolve
  })
  const order: string[] = []
  const x = { data: new Float32Array(20 * 256), shape: [20, 1, 16, 16] }
  const closes = (call: Promise<unknown>) =>
    rejects(() => call, 'ERR_DIT_CLOSED', /closed/).then(() => order.push('call'))
  const calls = [
    dit.sample([0, 1, 2], { ...long, onProgress: () => started() }),
    dit.sample([3, 4, 5], { ...long, seed: 2 }), // shares the lanes
    dit.stream(1, { ...long, priority: -1 }).next(), // waits for one
  ].map(closes)
  await Promise.race([running, ...calls])
  calls.push(closes(dit.denoise({ x, t: 5, y: 1 })))
  const closed = Promise.all([dit.close(), dit.close(), dit[Symbol.asyncDispose]()])
  await rejects(() => dit.sample(0), 'ERR_DIT_CLOSED', /closed/)
  await closed.then(() => order.push('close'))
  await Promise.all(calls)
  assert.is(order.at(-1), 'close', `all calls end before close does: ${order}`)
  await dit.close()
  await rejects(() => dit.sample(0), 'ERR_DIT_CLOSED', /closed/)
  await rejects(() => dit.denoise({ x, t: 5, y: 1 }), 'ERR_DIT_CLOSED', /closed/)
  await rejects(() => dit.save('/tmp/never'), 'ERR_DIT_CLOSED', /closed/)
  await rejects(async () => dit.memory(), 'ERR_DIT_CLOSED', /closed/)
})

test('stream: leaving the loop gives the lanes back', async () => {
  await using dit = await DiT.load(fashion, options)
  let steps = 0
  for await (const event of dit.stream([0, 1, 2, 3], long)) {
    if (event.type === 'progress' && ++steps === 3) break
  }
  assert.is(steps, 3)
  const before = performance.now()
  await dit.sample([0, 1, 2, 3], { steps: 3, output: 'latent' })
  const free = performance.now() - before
  const again = performance.now()
  await dit.sample([0, 1, 2, 3], { steps: 3, output: 'latent' })
  const alone = performance.now() - again
  assert.ok(free < 20 * alone + 500, `${free} ms after leaving, ${alone} ms otherwise`)

  const iterator = dit.stream(1, { steps: 3 })
  assert.equal(await iterator.return(), { value: undefined, done: true })
  assert.is((await iterator.next()).done, true)
})

test('a callback that throws ends its call with what it threw, and no other', async () => {
  await using dit = await DiT.load(fashion, options)
  const other = dit.sample(3, { steps: 20, seed: 1 })
  const thrown = new TypeError('from the callback')
  const onProgress = ({ step }: ProgressEvent | PreviewEvent) => {
    if (step >= 6) throw thrown
  }
  assert.is(await reason(dit.sample([1, 2], { ...long, onProgress })), thrown)
  assert.is((await other).length, 1)
  const load = DiT.load(fashion, {
    ...options,
    onProgress: () => {
      throw thrown
    },
  })
  assert.is(await reason(load), thrown)
})

// ---- the end of processes and workers ----

const library = new URL('../lib/index.ts', import.meta.url).href
const tsx = import.meta.resolve('tsx/esm/api')
// A worker does not inherit the loader of TypeScript.
const sampling = `
  const { register } = await import('${tsx}')
  register()
  const { DiT } = await import('${library}')
  const dit = await DiT.load('test/fixtures/fashion_dit/fashion.pt')
  const running = () => new Promise((resolve) => {
    dit.sample([0, 1, 2, 3], { steps: 900, onProgress: resolve }).catch(() => {})
  })
`

for (const [name, end] of [
  ['process.exit() while sampling', 'await running(); process.exit(0)'],
  ['process.exit() between jobs', 'process.exit(0)'],
  ['the end of the script with an open model', ''],
  ['an exit during the load', `DiT.create('DiT-B/4'); setTimeout(() => process.exit(0), 30)`],
]) {
  test(`the process ends quietly: ${name}`, async () => {
    for (let i = 0; i < 3; i++) {
      const ended = await runModule(`${sampling}${end}`)
      assert.is(ended.signal, null, ended.stderr)
      assert.is(ended.status, 0, ended.stderr)
      assert.is(ended.stderr, '')
    }
  })
}

test('a pending call keeps the process alive', async () => {
  const ended = await runModule(`${sampling}
    dit.sample([0], { steps: 3 }).then((images) => console.log(images.length))`)
  assert.is(ended.stdout, '1\n')
  assert.is(ended.status, 0, ended.stderr)
})

for (const [name, end] of [
  [
    'terminated while it samples',
    'await running(); parentPort.postMessage("go"); await new Promise(() => {})',
  ],
  [
    'that calls process.exit() while it samples',
    'await running(); parentPort.postMessage("go"); process.exit()',
  ],
  ['that ends with an open model', 'parentPort.postMessage("go")'],
]) {
  test(`a worker ${name} leaves the process as it was`, async () => {
    const ended = await runModule(`
      import { Worker } from 'node:worker_threads'
      import { once } from 'node:events'
      const source = ${JSON.stringify(`import { parentPort } from 'node:worker_threads'${sampling}${end}`)}
      // The binary is loaded by workers alone first: Node unloads it when the last of them ends.
      for (let i = 0; i < 4; i++) {
        const worker = new Worker(source, { eval: true })
        worker.on('error', (error) => { console.log('worker:', error); process.exit(3) })
        const exit = once(worker, 'exit') // on a busy machine it comes in the same turn as the message
        await once(worker, 'message')
        if (${name?.startsWith('terminated')}) await worker.terminate()
        else await exit
      }
      const { DiT } = await import('${library}')
      const dit = await DiT.load('test/fixtures/fashion_dit/fashion.pt')
      console.log((await dit.sample([1, 2], { steps: 3 })).length)
    `)
    assert.is(ended.signal, null, ended.stderr)
    assert.is(ended.stdout, '2\n', ended.stderr)
    assert.is(ended.status, 0, ended.stderr)
  })
}

test.run()
