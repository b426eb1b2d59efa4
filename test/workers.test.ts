// worker_threads: several at once share the processor and give the same bits as the main thread;
// hundreds that come and go, most of them ended in the middle of something, leave nothing behind.
// timeout: 240s
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, DiTError } from '../lib/index.js'
import { fixture, temporaryFolder } from './helpers/files.js'

const dist = fileURLToPath(new URL('../dist/index.js', import.meta.url))

/** Wide enough that its products are shared out among threads. */
const wide = {
  depth: 2,
  hidden: 256,
  heads: 4,
  latentSize: 16,
  channels: 1,
  numClasses: 3,
} as const

/** A worker that runs the body of an async function of `DiT`, `data` and `tell(message)`. */
function start(body: string, data: unknown): Worker {
  const source = `
    const { parentPort, workerData: data } = require('node:worker_threads')
    const { DiT } = require(${JSON.stringify(dist)})
    const tell = (message) => parentPort.postMessage(message)
    const run = async () => { ${body} }
    run()`
  return new Worker(source, { eval: true, workerData: data })
}

/** What the worker tells first. Rejects with what it throws. */
async function told(worker: Worker): Promise<unknown> {
  const [message] = await once(worker, 'message')
  return message
}

test('four workers at once, beside the main thread: the same bits, one budget of threads', async () => {
  const options = { precision: 'fp32', threads: 2, seed: 5 } as const
  const request = { steps: 6, sampler: 'ddpm', seed: 11, output: 'latent' } as const
  await using dit = await DiT.create(wide, options)
  const alone = await dit.sample([0, 1, 2], request)
  const workers = Array.from({ length: 4 }, () =>
    start(
      `const dit = await DiT.create(data.wide, data.options)
       tell('loaded')
       await require('node:events').once(parentPort, 'message') // all begin together
       tell(await dit.sample([0, 1, 2], data.request))
       await dit.close()
       parentPort.unref()`,
      { wide, options, request },
    ),
  )
  await Promise.all(workers.map(told))
  const ended = workers.map((worker) => once(worker, 'exit'))
  const answers = workers.map(told)
  for (const worker of workers) worker.postMessage('go')
  const beside = await dit.sample([0, 1, 2], request)
  assert.equal(beside, alone)
  for (const answer of await Promise.all(answers)) assert.equal(answer, alone)
  assert.equal(await Promise.all(ended), [[0], [0], [0], [0]])
})

test('workers that may use one thread each take turns: the process uses one, and what JavaScript does', async () => {
  const options = { precision: 'fp32', threads: 1, seed: 5 } as const
  const workers = Array.from({ length: 4 }, () =>
    start(
      `const dit = await DiT.create(data.wide, data.options)
       tell('loaded')
       await require('node:events').once(parentPort, 'message')
       await dit.sample([0, 1], { steps: 40, output: 'latent' })
       tell('done')`,
      { wide, options },
    ),
  )
  await Promise.all(workers.map(told))
  const [from, before] = [performance.now(), process.cpuUsage()]
  const answers = workers.map(told)
  for (const worker of workers) worker.postMessage('go')
  await Promise.all(answers)
  const used = process.cpuUsage(before)
  const busy = (used.user + used.system) / 1e3 / (performance.now() - from)
  await Promise.all(workers.map((worker) => worker.terminate()))
  // A busy machine makes this smaller, never larger. Without turns it is the number of cores or 4.
  assert.ok(busy < 1.5, `${busy.toFixed(2)} processors`)
})

// What a worker is doing when it is ended, from outside or by itself. It tells that it has begun
// when it has, and goes on for minutes unless it is ended.
const busyWith: Record<string, string> = {
  'coming up': `setInterval(() => {}, 1000); tell('begun'); await DiT.create(data.wide)`,
  loading: `
    const onProgress = () => tell('begun')
    for (;;) await (await DiT.load(data.fashion, { threads: 2, onProgress })).close()`,
  'an open model': `const dit = await DiT.load(data.pipeline); tell('begun'); setInterval(() => dit, 1000)`,
  sampling: `
    const dit = await DiT.create(data.wide, { threads: 2 })
    await dit.sample([0, 1, 2], { steps: 900, onProgress: () => tell('begun') })`,
  decoding: `
    const dit = await DiT.load(data.pipeline, { threads: 2 })
    const latents = await dit.encode({ data: new Uint8Array(3 * 64 * 64), width: 64, height: 64, channels: 3 })
    const [, c, h, w] = latents.shape
    const many = { data: new Float32Array(400 * c * h * w), shape: [400, c, h, w] }
    for (;;) {
      const decoded = dit.decode(many)
      setImmediate(() => tell('begun'))
      await decoded
    }`,
  training: `
    const dit = await DiT.create(data.wide, { threads: 2 })
    const image = new Float32Array(256)
    const items = function* () { for (;;) yield { image, label: 1 } }
    for await (const event of dit.train(items, { batchSize: 2, globalBatch: 4, steps: 1e6 })) {
      if (event.type === 'step') tell('begun')
    }`,
  saving: `
    const dit = await DiT.create(data.wide, { threads: 2 })
    for (let i = 0; ; i++) {
      const saved = dit.save(require('node:path').join(data.folder, 'saved-' + i % 2))
      tell('begun')
      await saved
    }`,
  'many streams': `
    const dit = await DiT.load(data.fashion, { threads: 2 })
    const stream = async (label) => {
      for await (const event of dit.stream([label], { steps: 900, preview: 2 })) {
        if (event.type === 'preview') tell('begun')
      }
    }
    await Promise.all([0, 1, 2, 3, 4, 5].map(stream))`,
}

const threads = () => readdirSync('/proc/self/task').length

test('200 workers ended in the middle of something: no crash, no thread, no growth', async () => {
  const kWorkers = 200
  const kWarmUp = 72 // two turns of every kind of work and of end
  const data = {
    wide,
    fashion: fixture('fashion_dit/fashion.pt'),
    pipeline: fixture('diffusers_pipeline'),
    folder: temporaryFolder(),
  }
  const saved = [0, 1].map((i) => path.join(data.folder, `saved-${i}`))
  await using older = await DiT.create(wide)
  for (const target of saved) await older.save(target)
  const kinds = Object.entries(busyWith)
  const rss: number[] = [] // MiB
  let atFirst = 0
  const ends = { terminated: 0, exited: 0, failed: 0 }
  let state = 1
  for (let i = 0; i < kWorkers; i++) {
    const [kind, body] = kinds[i % kinds.length] as [string, string]
    state = (state * 48271) % 2147483647 // how long it works on, in steps of half a millisecond
    const work = (state % 40) / 2
    // Of nine turns of a kind, one ends itself, one is given up by an exception.
    const end = Math.floor(i / kinds.length) % 9
    const ending = [
      `setTimeout(() => process.exit(7), ${work})`,
      `setTimeout(() => { throw new Error('enough') }, ${work})`,
    ]
    const worker = start(`${ending[end] ?? ''}\n${body}`, data)
    let error: Error | undefined
    worker.on('error', (thrown) => {
      error = thrown
    })
    const exit = new Promise((resolve) => worker.on('exit', resolve))
    if (end < 2) {
      worker.on('message', () => {})
      const code = await exit
      assert.is(code, end === 0 ? 7 : 1, `${kind}: ${error?.stack}`)
      if (end === 0) ends.exited++
      else {
        assert.is(error?.message, 'enough', kind)
        ends.failed++
      }
    } else {
      await told(worker)
      await sleep(work)
      assert.is(await worker.terminate(), 1, `${kind}: it had ended by itself`)
      assert.is(error, undefined, `${kind}: ${error?.stack}`)
      ends.terminated++
    }
    if (i % kinds.length < kinds.length - 1) continue
    rss.push(Math.round(process.memoryUsage.rss() / 2 ** 20))
    if (rss.length === 1) atFirst = threads()
  }
  assert.is(ends.terminated + ends.exited + ends.failed, kWorkers)
  // V8's garbage comes and goes by 12 MiB, so the lowest counts. In 1000 workers it grows by 4 MiB; a
  // model that stays is 6.3 MiB, so that of one worker in sixty does not pass.
  const warm = rss.slice(kWarmUp / kinds.length)
  const half = Math.floor(warm.length / 2)
  const grown = Math.min(...warm.slice(half)) - Math.min(...warm.slice(0, half))
  // AddressSanitizer keeps what was freed for a while, for each thread.
  const bound = process.env.DIT_SANITIZED === undefined ? 12 : 100
  assert.ok(grown <= bound, `${grown} MiB more: ${rss.join(' ')}`)
  // The threads of a pool end after the thread that had it.
  for (let i = 0; i < 200 && threads() > atFirst; i++) await sleep(50)
  assert.ok(threads() <= atFirst, `${threads()} threads, ${atFirst} at first`)

  // What was being saved lies beside the targets. These are whole, or away for the moment of an
  // exchange and whole under another name; what they have replaced may be half removed.
  const left = readdirSync(data.folder)
  for (const name of left) assert.match(name, /^saved-[01](\.\d+-[0-9a-f]+\.(new|old))?$/)
  const loads = async (name: string) => {
    try {
      await (await DiT.load(path.join(data.folder, name))).close()
      return true
    } catch (error) {
      assert.instance(error, DiTError)
      return false
    }
  }
  for (const target of ['saved-0', 'saved-1']) {
    if (left.includes(target)) {
      await (await DiT.load(path.join(data.folder, target))).close()
      continue
    }
    const aside = left.filter((name) => name.startsWith(target) && name.endsWith('.old'))
    const whole = await Promise.all(aside.map(loads))
    assert.ok(whole.includes(true), `${target} is lost: ${left.join(' ')}`)
  }

  // And the addon still works, here and in a worker.
  await using dit = await DiT.create(wide, { seed: 1 })
  const request = { steps: 3, seed: 1, output: 'latent' } as const
  const here = await dit.sample([0], request)
  const worker = start(
    'const dit = await DiT.create(data.wide, { seed: 1 }); tell(await dit.sample([0], data.request))',
    { wide, request },
  )
  assert.equal(await told(worker), here)
  await worker.terminate()
})

test.run()
