// The benchmarks, one function each.

import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { decodeCost, forwardCost, parameterCount } from '../lib/cli/cost.js'
import { resolveSource } from '../lib/formats/source.js'
import { DiT, type Precision } from '../lib/index.js'
import { packageRoot as root } from '../lib/root.cjs'
import { Child } from './child.js'
import {
  ditConfig,
  ditWeights,
  type Forward,
  peerFolder,
  peerModel,
  reference,
  vaeConfig,
  vaeWeights,
} from './files.js'
import type { Ours } from './ours.js'
import type { Peer } from './peers/onnxruntime.js'

/** Seconds. */
export interface Times {
  all: number[]
  min: number
  median: number
}

export function timesOf(all: number[]): Times {
  const sorted = [...all].sort((a, b) => a - b)
  return { all, min: sorted[0] as number, median: sorted[sorted.length >> 1] as number }
}

export const threads = os.availableParallelism()

/** The precisions of this processor that are measured. */
export async function precisions(): Promise<Precision[]> {
  const [cpu] = await DiT.devices()
  return cpu?.available ? [...cpu.precisions].sort() : []
}

async function withChild<T>(
  precision: Precision,
  vae: boolean,
  use: (child: Child<Ours>, loaded: Awaited<ReturnType<Ours['load']>>) => Promise<T>,
): Promise<T> {
  const child = new Child<Ours>('ours.ts')
  try {
    const options = { precision, threads, ...(vae && { vae: vaeWeights() }) }
    return await use(child, await child.ask('load', { source: ditWeights(), options }))
  } finally {
    await child.stop()
  }
}

/** Threads of a process that has just worked spin for a while before they sleep. */
const restSeconds = 0.2

// ---- the processor's peak ----

/** GFLOP/s of multiply-adds on registers alone, the best of 15, all threads. */
export function measurePeak(): Record<string, number> {
  const test = path.join(root, 'build/Release/dit_native_test')
  const { stdout, status } = spawnSync(test, ['--bench', 'peak'], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`${test} --bench peak failed:\n${stdout}`)
  const lines = stdout.matchAll(
    /^peak\/(\w+) +([\d.]+) us +([\d.]+) GFLOP\/s +\(best ([\d.]+) us\)$/gm,
  )
  return Object.fromEntries(
    [...lines].map(([, precision, median, rate, best]) => {
      return [precision, (Number(rate) * Number(median)) / Number(best)]
    }),
  )
}

// ---- one forward pass, beside onnxruntime ----

export async function measureForward(rounds: number) {
  const { out: expected, ...inputs } = await reference()
  const model = await peerModel(inputs.t.length)
  const peer = new Child<Peer>('peers/onnxruntime.ts')
  const ours = new Map<Precision, Child<Ours>>()
  try {
    // Profiled first, in a session of its own, since profiling costs time.
    const profile = await peer.ask('profile', { folder: peerFolder(), model, threads, inputs })
    for (const kernel of ['MultiHeadAttention', 'FastGelu']) {
      const calls = profile[kernel]?.calls ?? 0
      if (calls === ditConfig.depth) continue
      throw new Error(`onnxruntime ran its fused ${kernel} ${calls} times, not ${ditConfig.depth}`)
    }
    await peer.ask('load', { folder: peerFolder(), model, threads })
    const all: [name: string, child: Child<Ours> | Child<Peer>][] = [['onnxruntime fp32', peer]]
    for (const precision of await precisions()) {
      const child = new Child<Ours>('ours.ts')
      ours.set(precision, child)
      await child.ask('load', { source: ditWeights(), options: { precision, threads } })
      all.push([precision, child])
    }

    // The first run warms up, and shows that all compute the same.
    const errors: Record<string, number> = {}
    for (const [name, child] of all) {
      const { out } = await (child as Child<Ours>).ask('forward', inputs)
      errors[name] = relativeL2(out, expected)
    }
    const seconds = new Map<string, number[]>(all.map(([name]) => [name, []]))
    for (let round = 0; round < rounds; round++) {
      // Timesteps that were not seen before: nothing of the last round can be used again.
      const fresh: Forward = { ...inputs, t: inputs.t.map((t) => (t + 17 * (round + 1)) % 1000) }
      for (const [name, child] of round % 2 === 0 ? all : [...all].reverse()) {
        await pause(1000 * restSeconds)
        const reply = await (child as Child<Ours>).ask('forward', fresh)
        seconds.get(name)?.push(reply.seconds)
      }
    }
    const flops = inputs.t.length * forwardCost(ditConfig).flops
    const times = Object.fromEntries([...seconds].map(([name, list]) => [name, timesOf(list)]))
    return { flops, times, errors, profile }
  } finally {
    await Promise.all([peer, ...ours.values()].map((child) => child.stop()))
  }
}

/** ||got - want|| / ||want||. */
function relativeL2(got: Float32Array, want: Float32Array): number {
  const norm = (value: (i: number) => number) =>
    Math.sqrt(want.reduce((sum, _, i) => sum + value(i) ** 2, 0))
  return norm((i) => (got[i] as number) - (want[i] as number)) / norm((i) => want[i] as number)
}

// ---- the VAE's decoder ----

export async function measureDecoder(rounds: number) {
  const latentSize = [32, 32] as const
  const [height, width] = latentSize
  // Any numbers of a latent's size: the time does not depend on them.
  const data = Float32Array.from({ length: 4 * height * width }, (_, i) => Math.sin(i * i))
  const latents = { data, shape: [1, 4, height, width] }
  const times: Record<string, Times> = {}
  for (const precision of await precisions()) {
    times[precision] = await withChild(precision, true, async (child) => {
      await child.ask('decode', latents)
      const seconds = []
      for (let i = 0; i < rounds; i++) seconds.push((await child.ask('decode', latents)).seconds)
      return timesOf(seconds)
    })
  }
  return { flops: decodeCost(vaeConfig(), latentSize).flops, times }
}

// ---- loading ----

export async function measureLoad(rounds: number) {
  const source = await resolveSource(ditWeights())
  const parameters = parameterCount(source.dit.tensors)
  const results: Record<string, ReturnType<typeof summary>> = {}
  for (const precision of await precisions()) {
    const loads: Awaited<ReturnType<Ours['load']>>[] = []
    // Once more than is counted: the first one brings the file into the page cache.
    for (let i = 0; i <= rounds; i++) {
      const loaded = await withChild(precision, false, async (_, result) => result)
      if (i > 0) loads.push(loaded)
    }
    results[precision] = summary(loads, parameters * (precision === 'bf16' ? 2 : 4))
  }
  return results
}

function summary(loads: Awaited<ReturnType<Ours['load']>>[], weightBytes: number) {
  const peak = Math.max(...loads.map(({ peak, before }) => peak - before))
  const after = Math.max(...loads.map(({ after, before }) => after - before))
  const resident = Math.max(...loads.map((load) => load.resident))
  return { times: timesOf(loads.map(({ seconds }) => seconds)), weightBytes, peak, after, resident }
}

// ---- the command line, from labels to a PNG ----

export interface Stages {
  load: number
  sample: number
  decode: number
  write: number
  total: number
  /** The whole process; what it has beyond `total` is Node's start and end. */
  process: number
}

export async function measureSample(rounds: number) {
  const built = spawnSync(process.execPath, [path.join(root, 'scripts/build-ts.mjs')], {
    stdio: ['ignore', 2, 2],
  })
  if (built.status !== 0) throw new Error('scripts/build-ts.mjs failed')
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dit-bench-'))
  const image = path.join(folder, 'sample.png')
  const options = ['--labels', '207', '--steps', '20', '--guidance', '4', '--seed', '1']
  const command = ['sample', ...options, '--out', image, '--json', '--quiet']
  const files = ['--model', ditWeights(), '--vae', vaeWeights()]
  try {
    const runs: Record<string, Stages> = {}
    for (const precision of await precisions()) {
      const stages: Stages[] = []
      for (let i = 0; i < rounds; i++) {
        const args = [...command, ...files, '--precision', precision]
        const begin = performance.now()
        const result = JSON.parse(await runCli(args)) as { seconds: Omit<Stages, 'process'> }
        stages.push({ ...result.seconds, process: (performance.now() - begin) / 1000 })
        if (!existsSync(image)) throw new Error('dit sample wrote no image')
        rmSync(image)
      }
      runs[precision] = stages.sort((a, b) => a.process - b.process)[0] as Stages
    }
    return { command: `dit ${command.slice(0, -3).join(' ')} sample.png`, runs }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

function runCli(args: string[]): Promise<string> {
  const cli = spawn(process.execPath, [path.join(root, 'dist/cli/main.js'), ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let output = ''
  cli.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text
  })
  return new Promise((resolve, reject) => {
    cli.on('error', reject)
    cli.on('close', (status) => {
      if (status === 0) resolve(output)
      else reject(new Error(`dit ${args.join(' ')} ended with status ${status}`))
    })
  })
}
