// The process that runs onnxruntime-node, which is installed beside the cached weights and is no
// dependency of this project.
//
// Settings, each tried on DiT-XL/2 with version 1.30 on two Zen 5 cores: pre-packed weights (without:
// 8 % slower), the memory arena (without: 10 % slower), as many threads as there are cores; spinning
// threads, flushed denormals, the optimisation level and block-wise division of work make no
// difference beyond noise. onnxruntime has no bf16 on x86: its CPU kernels are fp32.

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import os from 'node:os'
import path from 'node:path'
import { type Handlers, serve } from '../child.js'
import type { Forward } from '../files.js'

/** What is used of onnxruntime-node. */
interface OnnxTensor {
  data: Float32Array
}
interface Session {
  run(feeds: Record<string, OnnxTensor>): Promise<{ out: OnnxTensor }>
  endProfiling(): void
  release(): Promise<void>
}
interface Onnxruntime {
  InferenceSession: { create(file: string, options: object): Promise<Session> }
  Tensor: new (type: string, data: unknown, shape: number[]) => OnnxTensor
}

let ort: Onnxruntime | undefined
let session: Session | undefined

const now = () => performance.now() / 1000

/** The folder that onnxruntime-node is installed in, a model, and how many threads may run it. */
interface Where {
  folder: string
  model: string
  threads: number
}

function open({ folder, model, threads }: Where, more: object = {}): Promise<Session> {
  ort ??= createRequire(path.join(folder, 'package.json'))('onnxruntime-node') as Onnxruntime
  return ort.InferenceSession.create(model, {
    executionProviders: ['cpu'],
    graphOptimizationLevel: 'all',
    executionMode: 'sequential',
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    ...more,
  })
}

async function run({ x, t, y }: Forward): Promise<Float32Array> {
  if (ort === undefined || session === undefined) throw new Error('load first')
  const n = t.length
  const { out } = await session.run({
    x: new ort.Tensor('float32', x.data, x.shape),
    t: new ort.Tensor('float32', Float32Array.from(t), [n]),
    y: new ort.Tensor('int64', BigInt64Array.from(y, BigInt), [n]),
  })
  return out.data
}

const handlers = {
  async load(where: Where) {
    const begin = now()
    session = await open(where)
    return { seconds: now() - begin }
  },

  async forward(inputs: Forward) {
    const begin = now()
    const out = await run(inputs)
    return { seconds: now() - begin, out }
  },

  /** How often each kernel runs in one forward, and its share of the time. */
  async profile({ inputs, ...where }: Where & { inputs: Forward }) {
    const folder = mkdtempSync(path.join(os.tmpdir(), 'dit-bench-'))
    try {
      session = await open(where, {
        enableProfiling: true,
        profileFilePrefix: path.join(folder, 'profile'),
      })
      await run(inputs)
      session.endProfiling()
      await session.release()
      return kernels(folder)
    } finally {
      session = undefined
      rmSync(folder, { recursive: true })
    }
  },
} satisfies Handlers

interface ProfileEvent {
  cat: string
  name: string
  dur: number
  args: { op_name?: string }
}

function kernels(folder: string): Record<string, { calls: number; share: number }> {
  const [file] = readdirSync(folder)
  const events = JSON.parse(readFileSync(path.join(folder, file ?? ''), 'utf8')) as ProfileEvent[]
  const runs = events.filter(({ cat, name }) => cat === 'Node' && name.endsWith('_kernel_time'))
  const total = runs.reduce((sum, { dur }) => sum + dur, 0)
  const found: Record<string, { calls: number; share: number }> = {}
  for (const { dur, args } of runs) {
    const name = args.op_name ?? 'other'
    found[name] ??= { calls: 0, share: 0 }
    found[name].calls++
    found[name].share += dur / total
  }
  return found
}

export type Peer = typeof handlers
serve(handlers)
