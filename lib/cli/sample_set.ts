// `dit sample --count`: many images in one file, for evaluators.

import { DiTError, invalidOption } from '../errors.js'
import { processOptions } from '../options.js'
import type { SampleSetOptions } from '../samples/facts.js'
import { type SampleSetResult, sampleSet } from '../samples/set.js'
import { type Context, pick, withModel } from './command.js'
import type { SampleFlags } from './sample.js'
import { columns, duration } from './units.js'

/** What only a set of samples has. */
export interface SetFlags {
  count?: number
  shard?: [i: number, n: number]
  randomLabels?: true
}

export async function makeSampleSet(
  flags: SampleFlags,
  count: number,
  context: Context,
): Promise<void> {
  const begin = performance.now()
  const options = setOptions(flags, count)
  const { signal } = context
  const result = await withModel(flags.model, flags, context, async (dit, progress) => {
    const done = await sampleSet(dit, {
      ...options,
      signal,
      onProgress(event) {
        const name = event.phase === 'sample' ? 'sampling' : 'joining'
        progress.update(name, 'images', event.done, event.total)
      },
    })
    progress.end()
    return { ...done, source: dit.source.description, device: dit.device, precision: dit.precision }
  })
  const seconds = (performance.now() - begin) / 1000
  context.print(flags.json ? JSON.stringify({ ...result, seconds }) : describe(result, seconds))
}

function setOptions(flags: SampleFlags, count: number): SampleSetOptions {
  const { out, labels, randomLabels, columns } = flags
  if (columns !== undefined) throw invalidOption('--columns', 'nothing beside --count', columns)
  if (labels && randomLabels) {
    throw new DiTError('ERR_DIT_OPTION', 'Give --labels or --random-labels, not both')
  }
  if (!out.endsWith('.npz')) throw invalidOption('--out', 'a name that ends in .npz', out)
  const chosen = randomLabels ? ('random' as const) : labels
  return {
    ...pick(flags, ...processOptions, 'seed', 'shard'),
    ...(chosen && { labels: chosen }),
    out,
    count,
  }
}

type Result = SampleSetResult & { source: string; device: string; precision: string }

function describe({ out, sidecar, count, made, missing, ...of }: Result, seconds: number): string {
  const images =
    missing === 0 ? out : `${out}: not yet; other processes are to make ${missing} more`
  return columns([
    ['images', images],
    ...(missing === 0 ? [['made with', sidecar] as const] : []),
    ['count', `${count}, ${made} made now`],
    ['model', of.source],
    ['device', `${of.device}, ${of.precision}`],
    ['time', duration(seconds)],
  ])
}
