// The process that runs this project's library, through its public API.

import { readFileSync } from 'node:fs'
import { DiT, type LoadOptions, type Tensor } from '../lib/index.js'
import { type Handlers, serve } from './child.js'
import type { Forward } from './files.js'

let dit: DiT | undefined

function model(): DiT {
  if (dit === undefined) throw new Error('load first')
  return dit
}

const now = () => performance.now() / 1000

/** A line of /proc/self/status, in bytes. */
function status(name: 'RssAnon' | 'VmHWM'): number {
  const line = new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(
    readFileSync('/proc/self/status', 'utf8'),
  )
  return 1024 * Number(line?.[1])
}

const handlers = {
  /** Loads a model and watches this process's anonymous memory, every millisecond. */
  async load({ source, options }: { source: string; options: LoadOptions }) {
    const before = status('RssAnon')
    let peak = before
    const watch = setInterval(() => {
      peak = Math.max(peak, status('RssAnon'))
    }, 1)
    const begin = now()
    dit = await DiT.load(source, options)
    const seconds = now() - begin
    clearInterval(watch)
    const after = status('RssAnon')
    peak = Math.max(peak, after)
    const memory = dit.memory()
    return { seconds, before, peak, after, resident: status('VmHWM'), memory }
  },

  async forward({ x, t, y }: Forward) {
    const begin = now()
    const out = await model().denoise({ x, t, y, guidance: 1 })
    return { seconds: now() - begin, out: out.data }
  },

  async decode(latents: Tensor) {
    const begin = now()
    const [image] = await model().decode(latents)
    return { seconds: now() - begin, width: image?.width, height: image?.height }
  },
} satisfies Handlers

export type Ours = typeof handlers
serve(handlers)
