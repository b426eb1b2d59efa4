// Many samples as one file, by any number of processes: `sampleSet`.

import { listDevices } from '../devices.js'
import type { DiT } from '../dit.js'
import { DiTError } from '../errors.js'
import { check } from '../options.js'
import { describeSet, type SampleSetOptions, sampleSetSchema } from './facts.js'
import { isJoined, join, sidecarOf } from './join.js'
import { makeParts } from './make.js'
import { countImages, Parts, partRanges } from './parts.js'

/** What `sampleSet` has done. */
export interface SampleSetResult {
  /** The file: there when nothing is missing. */
  out: string
  /** The file that tells how it was made: there when nothing is missing. */
  sidecar: string
  /** Images in all. */
  count: number
  /** Images made by this call: the others were there. */
  made: number
  /** Images that are still to be made, by other processes. */
  missing: number
}

/**
 * Makes many images, to measure a model by: `count` of them, as a NumPy file in the layout of ADM's
 * evaluation (Dhariwal & Nichol 2021), which others read, too. `arr_0` has the images, uint8 [count,
 * height, width, channels], `arr_1` their class numbers, int64 [count]. A file beside it, which ends in
 * .json instead of .npz, tells what they were made with: sampler, steps, guidance, seed, precision, device,
 * the hash of the weights.
 *
 * Image k is that of `dit.sample(label, { seed: seed + k })`, and its label follows from k: so the file
 * does not depend, by a single bit, on how many processes made it and how often they were interrupted.
 * With `shard: [i, n]` each makes its share, in the folder `out + '.parts'` that they have in common; or
 * each on a machine of its own, and the folders' files are copied into one. Whoever finds all parts there
 * joins them. What is finished is never made again: after a kill, call it again with the same options.
 *
 * ADM's evaluator takes images of three channels; grey ones become that by `np.repeat(arr_0, 3, axis=3)`.
 *
 * @param dit A model, which may do other work meanwhile.
 * @param setOptions How many, where to, and as for `dit.sample`.
 *
 * Rejects with ERR_DIT_OPTION for a wrong option, or when what is there is of another set, with what is
 * different; ERR_DIT_FILE when something cannot be read or written (after a full disk, make room and call
 * it again), or when `out` is there and no set of samples; ERR_DIT_FORMAT for a damaged part; as
 * `dit.sample` does; with `signal.reason` after an abort.
 *
 * @example
 * const dit = await DiT.load('facebook/DiT-XL-2-256')
 * const { missing } = await sampleSet(dit, {
 *   out: 'samples.npz', count: 50_000, sampler: 'ddpm', steps: 250, guidance: 1.5, shard: [1, 4],
 * })
 */
export async function sampleSet(dit: DiT, setOptions: SampleSetOptions): Promise<SampleSetResult> {
  const given: SampleSetOptions = check(sampleSetSchema, setOptions)
  const { out, count, shard = [1, 1], signal, onProgress } = given
  signal?.throwIfAborted()
  const facts = await describeSet(dit, given)
  const parts = new Parts(out, facts)
  const [share, all] = [partRanges(facts, shard), partRanges(facts, [1, 1])]
  let made = 0
  const result = (missing: number) => ({ out, sidecar: sidecarOf(out), count, made, missing })
  if (await isJoined(out, parts)) return result(0)
  await parts.prepare()
  if (await isJoined(out, parts)) return result(0) // while the folder was made
  try {
    const { missing } = await parts.find(share)
    const total = countImages(share)
    const begun = total - countImages(missing)
    await makeParts(dit, parts, missing, {
      machine: await machineOf(dit),
      signal,
      onImage() {
        made++
        onProgress?.({ phase: 'sample', done: begun + made, total })
      },
    })
    const now = await parts.find(all)
    if (now.missing.length > 0) return result(countImages(now.missing))
    let joined = 0
    await join(out, parts, now.there, {
      source: dit.source.description,
      signal,
      onPart({ begin, end }) {
        joined += end - begin
        onProgress?.({ phase: 'join', done: joined, total: count })
      },
    })
    return result(0)
  } catch (error) {
    // One that had the same share, or found the last part at the same time, may have joined them all.
    if (!signal?.aborted && (await isJoined(out, parts))) return result(0)
    throw withAdvice(error)
  }
}

function withAdvice(error: unknown): unknown {
  const code = error instanceof DiTError && (error.cause as NodeJS.ErrnoException | undefined)?.code
  if (code !== 'ENOSPC' && code !== 'EDQUOT') return error
  const { message, cause } = error as DiTError
  const advice = 'What is finished is kept: make room, and ask for the same again'
  return new DiTError('ERR_DIT_FILE', `${message}. ${advice}`, { cause })
}

/** 'AMD EPYC 9B45, avx512bf16'. */
async function machineOf({ device }: DiT): Promise<string> {
  const found = (await listDevices()).find((info) => info.device === device)
  if (!found?.available) return device
  return `${found.name}, ${'isa' in found ? found.isa : found.arch}`
}
