// The farm of examples/farm: workers that share a queue in Redis, one of them killed amid its jobs.
// timeout: 120s
import { type ChildProcess, spawn } from 'node:child_process'
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT } from '../lib/index.js'
import { temporaryFolder } from './helpers/files.js'
import { freePort, until } from './helpers/waiting.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const kWorkers = 3
const kJobs = 36

// ---- processes, none of which outlives the test ----

const children = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})

interface Running {
  child: ChildProcess
  /** What it printed so far. */
  lines: string[]
  ended: Promise<void>
}

function run(command: string, args: string[], env: NodeJS.ProcessEnv = {}): Running {
  const stdio = ['ignore', 'pipe', 'inherit'] as const
  const child = spawn(command, args, { stdio: [...stdio], env: { ...process.env, ...env } })
  children.add(child)
  const lines: string[] = []
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    lines.push(...text.split('\n').filter((line) => line !== ''))
  })
  const ended = new Promise<void>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', () => {
      children.delete(child)
      resolve()
    })
  })
  return { child, lines, ended }
}

/** The example as it would be installed, with what its package.json lists and nothing else. */
function installed(): string {
  const folder = path.join(temporaryFolder(), 'farm')
  cpSync(path.join(root, 'examples/farm'), folder, { recursive: true })
  mkdirSync(path.join(folder, 'node_modules'))
  const { dependencies } = JSON.parse(readFileSync(path.join(folder, 'package.json'), 'utf8'))
  for (const name of Object.keys(dependencies)) {
    const place = name === 'dit-native' ? root : path.join(root, 'node_modules', name)
    symlinkSync(place, path.join(folder, 'node_modules', name))
  }
  return folder
}

// ---- the farm ----

interface Job {
  id: string
}
interface Progress {
  step: number
  steps: number
  worker: string
}
/** What the test uses of examples/farm/farm.mjs. */
interface Farm {
  submit(image: object, options?: { id?: string; priority?: number }): Promise<Job>
  finished(job: Job): Promise<{ file: string; worker: string }>
  cancel(id: string): Promise<void>
  onProgress(listener: (id: string, progress: Progress) => void): void
  ready(): Promise<void>
  close(): Promise<void>
}

const folder = installed()
const results = path.join(folder, 'results')
const workers: Running[] = []
let redis: Running
let farm: Farm
let env: NodeJS.ProcessEnv

const startWorker = () => run(process.execPath, [path.join(folder, 'worker.mjs')], env)
const isReady = ({ lines }: Running) => lines.some((line) => line.endsWith('ready'))
const madeBy = ({ lines }: Running) =>
  lines.filter((line) => line.startsWith('made ')).map((line) => line.slice(5))

/** The reason for which a job failed. */
async function failure(job: Job): Promise<string> {
  const reason = await farm.finished(job).then(
    () => 'it did not fail',
    (error: Error) => error.message,
  )
  return reason
}

test.before(async () => {
  const port = await freePort()
  const inMemory = ['--save', '', '--appendonly', 'no', '--dir', folder]
  redis = run('redis-server', ['--port', String(port), '--bind', '127.0.0.1', ...inMemory])
  await until('Redis', () => redis.lines.some((line) => line.includes('Ready to accept')))
  env = {
    REDIS_URL: `redis://127.0.0.1:${port}`,
    RESULTS: results,
    THREADS: '1',
    CONCURRENCY: '4',
    LOCK_SECONDS: '2',
  }
  Object.assign(process.env, env)
  const module = await import(pathToFileURL(path.join(folder, 'farm.mjs')).href)
  farm = new module.Farm()
  await farm.ready()
  for (let i = 0; i < kWorkers; i++) workers.push(startWorker())
  await until('workers', () => workers.every(isReady))
})

test.after(async () => {
  await farm.close()
  for (const { child } of [...workers, redis]) child.kill('SIGTERM')
  await Promise.all([...workers, redis].map(({ ended }) => ended))
})

test('a worker is killed (-9) amid its jobs: all are completed once, with the right images', async () => {
  const wanted = (k: number) => ({ label: k % 10, seed: 100 + k, steps: 30, guidance: 2 })
  const seen = new Map<string, Set<string>>() // workers by job
  farm.onProgress((id, { worker }) => {
    seen.set(id, (seen.get(id) ?? new Set()).add(worker.split(' ').at(-1) as string))
  })
  const completions = new Map<string, number>()
  const jobs = await Promise.all(
    Array.from({ length: kJobs }, (_, k) => farm.submit(wanted(k), { id: `job-${k}` })),
  )
  const ends = jobs.map(async (job) => {
    const result = await farm.finished(job)
    completions.set(job.id, (completions.get(job.id) ?? 0) + 1)
    return result
  })

  const [victim] = workers as [Running]
  const pid = String(victim.child.pid)
  const underWay = () =>
    [...seen].filter(([id, pids]) => pids.has(pid) && !madeBy(victim).includes(id))
  await until('a job of the worker to be killed', () => underWay().length > 0)
  victim.child.kill('SIGKILL')
  await victim.ended
  const orphans = underWay().map(([id]) => id)
  assert.ok(orphans.length > 0)

  const done = await Promise.all(ends)
  assert.equal(
    [...completions.values()],
    jobs.map(() => 1),
  )
  assert.equal(
    readdirSync(results).sort(),
    jobs.map(({ id }) => `${id}.png`).sort(),
    'one file each, and none that is not whole',
  )
  const all = () => workers.flatMap(madeBy)
  // What a worker prints may come later than what it tells Redis. The one that was killed may have got as far
  // as the file and no further.
  const ids = jobs.map(({ id }) => id)
  await until('all that was printed', () =>
    ids.every((id) => orphans.includes(id) || all().includes(id)),
  )
  assert.is(new Set(all()).size, all().length, 'none was made twice')
  const survivors = new Set(workers.slice(1).map(({ child }) => String(child.pid)))
  for (const [k, { file, worker }] of done.entries()) {
    assert.is(file, path.join(results, `job-${k}.png`))
    if (orphans.includes(`job-${k}`)) assert.ok(survivors.has(worker.split(' ').at(-1) as string))
  }

  await using dit = await DiT.load('demo', { threads: 1 })
  for (let k = 0; k < kJobs; k++) {
    const { label, ...options } = wanted(k)
    const [image] = await dit.sample(label, options)
    const alone = await image?.toPNG()
    assert.ok(alone?.equals(readFileSync(path.join(results, `job-${k}.png`))), `job ${k}`)
  }
})

test('jobs that are cancelled, under way or waiting, end; others go on', async () => {
  const slow = { label: 1, sampler: 'ddpm', steps: 1000, seed: 1 }
  const underWay = new Set<string>()
  farm.onProgress((id) => underWay.add(id))
  // More than the two workers that are left take at once: some wait.
  const jobs = await Promise.all(Array.from({ length: 12 }, () => farm.submit(slow)))
  await until('slow jobs', () => underWay.size >= 2)
  const quick = await farm.submit({ label: 2, seed: 1, steps: 2 }, { priority: 1 })
  const begin = performance.now()
  await Promise.all(jobs.map(({ id }) => farm.cancel(id)))
  const reasons = await Promise.all(jobs.map(failure))
  const seconds = (performance.now() - begin) / 1000
  assert.equal([...new Set(reasons)], ['cancelled'])
  await farm.finished(quick)
  const files = readdirSync(results)
  assert.ok(files.includes(`${quick.id}.png`))
  assert.not.ok(jobs.some(({ id }) => files.some((name) => name.includes(id))))
  console.log(`12 jobs of 1000 steps were given up within ${seconds.toFixed(2)} s`)
})

test('a wrong request fails at once, and says why', async () => {
  const outside = await farm.submit({ label: 1 }, { id: '../outside' }).then(String, String)
  assert.match(outside, /for the id of a job/)
  const job = await farm.submit({ label: 99, seed: 1 })
  assert.match(await failure(job), /a class from 0 to 9.*99 \(ERR_DIT_OPTION\)/)
})

test('submit.mjs asks and waits; SIGTERM lets a worker finish what it has', async () => {
  const args = [path.join(folder, 'submit.mjs'), '--labels', 'Bag,9', '--count', '6']
  const submit = run(process.execPath, [...args, '--steps', '12'], env)
  const before = workers.flatMap(madeBy).length
  await until('a first image', () => workers.flatMap(madeBy).length > before)
  const [, leaving] = workers as [Running, Running]
  leaving.child.kill('SIGTERM')
  await Promise.all([submit.ended, leaving.ended])
  assert.is(submit.child.exitCode, 0)
  assert.is(leaving.child.exitCode, 0)
  const files = submit.lines.filter((line) => line.endsWith('.png'))
  assert.is(files.length, 6, submit.lines.join('\n'))
})

test.run()
