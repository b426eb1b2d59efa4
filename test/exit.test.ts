// How a process ends that has work under way: with the code it would have without, and quietly. Of
// several processes: forked ones, those of a cluster, at once.
// timeout: 240s
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type Ended, runScript } from './helpers/child.js'
import { temporaryFolder } from './helpers/files.js'

const dist = fileURLToPath(new URL('../dist/index.js', import.meta.url))

// What is under way in the process's own thread, or in a worker's. `begun()` resolves when it is.
const works = {
  loading: `
    const begun = () => new Promise((onProgress) => {
      const again = () => DiT.load('demo', { threads: 2, onProgress }).then((dit) => dit.close()).then(again)
      again()
    })`,
  sampling: `
    const begun = async () => {
      const dit = await DiT.load('demo', { threads: 2 })
      return new Promise((onProgress) => {
        dit.sample([0, 1, 2, 3], { steps: 900, onProgress }).catch((error) => { throw error })
      })
    }`,
  decoding: `
    const begun = async () => {
      const dit = await DiT.load('test/fixtures/diffusers_pipeline', { threads: 2 })
      const shape = [400, dit.vae.latentChannels, 16, 16]
      const latents = { data: new Float32Array(shape.reduce((a, b) => a * b)), shape }
      const again = () => dit.decode(latents).then(again)
      again()
      await require('node:timers/promises').setTimeout(20)
    }`,
  training: `
    const begun = async () => {
      const size = { depth: 2, hidden: 256, heads: 4, latentSize: 16, channels: 1, numClasses: 3 }
      const dit = await DiT.create(size, { threads: 2 })
      const image = new Float32Array(256)
      const items = function* () { for (;;) yield { image, label: 1 } }
      const events = dit.train(items, { batchSize: 2, globalBatch: 4, steps: 1e6 })
      for (;;) if ((await events.next()).value.type === 'step') break
      const again = () => events.next().then(again)
      again()
    }`,
}

/** Three workers do the same, and the process goes on when all have begun. */
const inWorkers = (work: string) => `
  const { Worker } = require('node:worker_threads')
  const source = ${JSON.stringify(`const { DiT } = require('dit-native')${work}
    begun().then(() => require('node:worker_threads').parentPort.postMessage('begun'))`)}
  const begun = () => Promise.all([0, 1, 2].map(() => new Promise((resolve, reject) => {
    new Worker(source, { eval: true }).on('error', reject).once('message', resolve)
  })))`

const ends: [name: string, code: string, expected: Partial<Ended>][] = [
  ['exit()', 'process.exit()', { status: 0 }],
  ['exit(3)', 'process.exit(3)', { status: 3 }],
  ['exit() with process.exitCode', 'process.exitCode = 5; process.exit()', { status: 5 }],
  ['an exception', "setImmediate(() => { throw new Error('mine') })", { status: 1 }],
  ['a rejection', "Promise.reject(new Error('mine'))", { status: 1 }],
  [
    'a handler of exceptions that exits',
    "process.on('uncaughtException', () => process.exit(9)); setImmediate(() => { throw null })",
    { status: 9 },
  ],
  ['SIGTERM', "process.kill(process.pid, 'SIGTERM')", { status: null, signal: 'SIGTERM' }],
  [
    'a handler of SIGTERM that exits',
    "process.on('SIGTERM', () => process.exit(4)); process.kill(process.pid, 'SIGTERM')",
    { status: 4 },
  ],
]

function check(ended: Ended, expected: Partial<Ended>): void {
  const { status, signal = null } = expected
  assert.equal([ended.status, ended.signal], [status, signal], ended.stderr)
  if (status !== 1) assert.is(ended.stderr, '')
  else assert.match(ended.stderr, /Error: mine/)
  assert.is(ended.stdout, 'begun\n')
}

for (const [name, work] of Object.entries(works)) {
  test(`a process ends while it is ${name}`, async () => {
    for (const [, code, expected] of ends) {
      const script = `${work}
        begun().then(() => { console.log('begun'); setTimeout(() => { ${code} }, 5 * Math.random()) })`
      check(await runScript(script), expected)
    }
  })
}

for (const name of ['loading', 'sampling', 'training'] as const) {
  test(`a process ends while three workers are ${name}`, async () => {
    for (const [, code, expected] of ends) {
      const script = `${inWorkers(works[name])}
        begun().then(() => { console.log('begun'); setTimeout(() => { ${code} }, 5 * Math.random()) })`
      check(await runScript(script), expected)
    }
  })
}

test('exit() in a callback of the sampling itself', async () => {
  const script = `
    DiT.load('demo').then((dit) => {
      const onProgress = () => { console.log('begun'); process.exit(6) }
      dit.sample([0, 1], { steps: 900, preview: 1, onProgress })
    })`
  check(await runScript(script), { status: 6 })
})

test('models in listeners of exit: those that are open have ended, a new one is refused', async () => {
  const script = `
    const { native } = require('./dist/native.js')
    let dit
    const use = () => {
      const codes = []
      for (const action of [() => dit.memory(), () => new (native().Model)(() => {})]) {
        try { action() } catch (error) { codes.push(error.code) }
      }
      dit.close()
      dit.sample(0)
      DiT.load('demo')
      console.log(codes.join(' '))
    }
    DiT.load('demo').then((loaded) => {
      dit = loaded
      process.on('exit', use)
      dit.sample([0, 1], { steps: 900, onProgress: () => process.exit(0) })
    })`
  const ended = await runScript(script)
  assert.equal([ended.status, ended.signal], [0, null], ended.stderr)
  assert.is(ended.stdout, 'ERR_DIT_CLOSED ERR_DIT_CLOSED\n')
  assert.is(ended.stderr, '')
})

// The image's sum stands for the image.
const forked = `
  const sample = async () => {
    const dit = await DiT.load('demo', { precision: 'fp32', threads: 2 })
    const images = await dit.sample([1, 7], { steps: 8, seed: 3 })
    const sums = images.map(({ data }) => data.reduce((sum, byte, i) => (sum * 31 + byte * i) % 65521, 1))
    return [dit, sums.join()]
  }`

/** A program of a child process. */
function program(source: string): string {
  const file = path.join(temporaryFolder(), 'child.cjs')
  writeFileSync(file, `const { DiT } = require(${JSON.stringify(dist)})\n${source}`)
  return JSON.stringify(file)
}

test('forked children sample at once, while the parent has a model and samples', async () => {
  const child = program(`${forked}
    sample().then(([dit, sums]) => process.send(sums, () => process.disconnect()))`)
  const script = `
    const { fork } = require('node:child_process')
    ${forked}
    const run = () => new Promise((resolve, reject) => {
      let sums
      fork(${child})
        .on('error', reject)
        .on('message', (message) => { sums = message })
        .on('exit', (code) => resolve([code, sums]))
    })
    ;(async () => {
      const [dit, alone] = await sample()
      const busy = dit.sample([0, 1, 2, 3], { steps: 900 }).catch((error) => error.code)
      const ends = await Promise.all([run(), run(), run()])
      await dit.close()
      console.log(JSON.stringify(ends) === JSON.stringify(Array(3).fill([0, alone])), await busy)
    })()`
  const ended = await runScript(script)
  assert.is(ended.stdout, 'true ERR_DIT_CLOSED\n', ended.stderr)
  assert.is(ended.status, 0, ended.stderr)
})

test('the workers of a cluster sample at once, and one that is killed takes nothing with it', async () => {
  const child = program(`${forked}
    sample().then(([dit, sums]) => {
      process.on('message', () => {
        dit.sample([0, 1], { steps: 900, onProgress: () => process.send('begun') })
      })
      process.send(sums)
    })`)
  const script = `
    const cluster = require('node:cluster')
    ${forked}
    cluster.setupPrimary({ exec: ${child}, execArgv: [] })
    ;(async () => {
      const [dit, alone] = await sample()
      const workers = [0, 1, 2].map(() => cluster.fork())
      const message = (worker) => new Promise((resolve) => worker.once('message', resolve))
      const sums = await Promise.all(workers.map(message))
      const ends = workers.map((worker) => new Promise((resolve) => {
        worker.once('exit', (code, signal) => resolve(signal ?? code))
      }))
      workers[0].send('work')
      await message(workers[0])
      workers[0].process.kill('SIGKILL')
      workers[1].disconnect()
      workers[2].process.kill('SIGTERM')
      const again = (await sample())[1]
      console.log([...sums, again].every((one) => one === alone), (await Promise.all(ends)).join())
      process.exit(0)
    })()`
  const ended = await runScript(script)
  assert.is(ended.stdout, 'true SIGKILL,0,SIGTERM\n', ended.stderr)
  assert.is(ended.status, 0, ended.stderr)
})

test.run()
