// From the options of a call to requests for the native part.

import { randomBytes } from 'node:crypto'
import type { CallRequest, SampleRequest } from '../bindings.js'
import { DiTError, invalidOption } from './errors.js'
import type { PreviewEvent, ProgressEvent } from './events.js'
import type { DiTConfig, ScheduleConfig, VaeConfig } from './formats/types.js'
import { type RawImage, splitImages } from './image.js'
import { nativeError, type RunningEvent } from './jobs.js'
import { type ClassNames, type ResolvedLabels, resolveLabels } from './labels.js'
import { native } from './native.js'
import type { SampleOptions as Options, Output, PreviewOptions, Seed } from './options.js'
import { checkTensor, slice, type Tensor } from './tensor.js'

type SampleOptions = Options<Output>

/** The latents of `dit.sample` with `output: 'latent'`: [n, channels, height, width]. */
export interface Latents extends Tensor {
  /** The seed of each. */
  seeds: Seed[]
  /** The class number of each; undefined for embeddings. */
  labels: (number | undefined)[]
}

/** What a call is to make, image by image. @internal */
export interface Made {
  seed: Seed
  label?: number
}

/** What is known of a loaded model. @internal */
export interface ModelFacts {
  readonly config: DiTConfig
  readonly vae?: VaeConfig | undefined
  readonly schedule: ScheduleConfig
  readonly classNames: ClassNames
}

/** A call, cut into requests of a few images each. @internal */
export interface SamplePlan {
  readonly made: Made[]
  readonly call: CallRequest
  readonly parts: SamplePart[]
}

/** The request for images `begin` to `end` of a call. @internal */
export interface SamplePart {
  readonly request: Omit<SampleRequest, 'call'>
  readonly begin: number
  readonly end: number
}

/**
 * A call is cut into native jobs whose data is at most this many bytes (or one image), since copying
 * between JavaScript and native memory holds the event loop up: 4 MiB for about 1 ms.
 */
const bytesPerJob = 4 << 20

/** [begin, end) of each job for n images with so many bytes each. @internal */
export function jobRanges(n: number, bytesPerImage: number): [begin: number, end: number][] {
  const size = Math.max(1, Math.floor(bytesPerJob / bytesPerImage))
  return Array.from({ length: Math.ceil(n / size) }, (_, i) => [
    i * size,
    Math.min((i + 1) * size, n),
  ])
}

/** Pixels of an image per latent pixel. @internal */
export function downscale(vae: VaeConfig): number {
  return 2 ** (vae.blockOutChannels.length - 1)
}

/** @internal */
export function planSample(model: ModelFacts, labels: unknown, options: SampleOptions): SamplePlan {
  const { config } = model
  const { sampler = 'dpm++', eta = 0, clip = false, output = 'image', preview } = options
  const { guidanceInterval = [0, 1], noise, stepNoise } = options
  const [height, width] = config.latentSize
  if (eta > 0 && sampler !== 'ddim') throw invalidOption('eta', `0 for sampler '${sampler}'`, eta)
  if (output === 'image' || preview !== undefined) checkPicture(model)

  const resolved = resolveLabels(labels, config, model.classNames)
  const n = resolved.classes.length
  const seeds = resolveSeeds(options, n)
  const spacing = resolveSpacing(options, sampler)
  if (noise) checkTensor('noise', noise, [n, config.channels, height, width])
  const steps = countSteps(model.schedule, spacing)
  if (stepNoise) {
    checkTensor('stepNoise', stepNoise, [n, steps, config.channels, height, width])
  }

  const guidance = resolveGuidance(options.guidance ?? (config.nullClass ? 4 : 1), config)
  const common = {
    sampler,
    spacing,
    eta,
    clip,
    guidance,
    guidanceChannels: resolveGuidanceChannels(options.guidanceChannels, config),
    guidanceInterval: [guidanceInterval[0], guidanceInterval[1]] as [number, number],
    latentOnly: output === 'latent',
    ...previewFields(options.onProgress ? preview : undefined), // made only for those who look
  }
  return {
    made: seeds.map((seed, i) => {
      const label = resolved.classes[i] as number
      return { seed: toSeed(seed), ...(label >= 0 && { label }) }
    }),
    call: {
      images: n,
      steps,
      rows: steps + (guidance === 1 ? 0 : guidedSteps(model.schedule, spacing, guidanceInterval)),
      priority: options.priority ?? 0,
      caller: options.caller ?? '',
      deadline: options.deadline === undefined ? null : options.deadline / 1000,
      decoded: output === 'image',
    },
    parts: jobRanges(n, bytesPerImage(model, options, n)).map(([begin, end]) => ({
      begin,
      end,
      request: {
        ...common,
        ...labelFields(resolved, begin, end),
        seeds: new BigUint64Array(seeds.slice(begin, end)),
        noise: noise ? slice(noise, begin, end) : null,
        stepNoise: stepNoise ? slice(stepNoise, begin, end) : null,
      },
    })),
  }
}

function previewFields(preview: number | PreviewOptions = 0) {
  const { every, kind = 'linear' } = typeof preview === 'number' ? { every: preview } : preview
  return { previewEvery: every, previewKind: kind }
}

/** @internal */
export function labelFields({ classes, vectors }: ResolvedLabels, begin: number, end: number) {
  const some = vectors.slice(begin, end)
  return {
    labels: new Int32Array(classes.slice(begin, end)),
    vectors: some.some((vector) => vector !== null) ? some : null,
  }
}

/** Whether the model's latents can be shown. */
function checkPicture({ config, vae }: ModelFacts): void {
  if (vae || config.channels === 1 || config.channels === 3) return
  throw new DiTError(
    'ERR_DIT_OPTION',
    `This model makes latents of ${config.channels} channels and came without a VAE that decodes ` +
      "them. Load it with the option vae, or ask for output: 'latent' and no preview",
  )
}

/** Of the data that goes in, or of that which comes out, whichever is more. */
function bytesPerImage(model: ModelFacts, { output, noise, stepNoise }: SampleOptions, n: number) {
  const { config, vae } = model
  const [height, width] = config.latentSize
  const scale = vae ? downscale(vae) : 1
  const pixels = height * scale * width * scale * (vae?.outChannels ?? config.channels)
  const out = output === 'latent' ? 4 * height * width * config.channels : pixels
  const noises = ((noise?.data.byteLength ?? 0) + (stepNoise?.data.byteLength ?? 0)) / n
  return Math.max(out, noises)
}

function resolveSpacing({ steps, spacing }: SampleOptions, sampler: string): string {
  if (spacing === undefined) return String(steps ?? (sampler === 'ddpm' ? 250 : 25))
  if (steps !== undefined) throw invalidOption('steps', 'nothing beside spacing', steps)
  return String(spacing)
}

/** Evaluations of the model for one image. @internal */
export function countSteps(schedule: ScheduleConfig, spacing: string): number {
  return /^\d+$/.test(spacing) ? Number(spacing) : tables(schedule, spacing).timestepMap.length
}

/** How many of the steps have a timestep within the guided part of the process. */
function guidedSteps(
  schedule: ScheduleConfig,
  spacing: string,
  [from, to]: readonly [number, number],
): number {
  if (from === 0 && to === 1) return countSteps(schedule, spacing)
  const isGuided = (t: number) => from <= t / schedule.steps && t / schedule.steps <= to
  return tables(schedule, spacing).timestepMap.filter(isGuided).length
}

/** Throws ERR_DIT_OPTION for betas that make no diffusion process. @internal */
export function checkSchedule(schedule: ScheduleConfig): void {
  tables(schedule, '1')
}

function tables(schedule: ScheduleConfig, spacing: string) {
  try {
    return native().schedule(schedule, spacing)
  } catch (error) {
    throw nativeError(error)
  }
}

/** @internal */
export function resolveGuidance(guidance: number, { nullClass }: DiTConfig): number {
  if (guidance === 1 || nullClass) return guidance
  throw new DiTError(
    'ERR_DIT_OPTION',
    `Expected 1 for guidance but got ${guidance}: this model has no null class, which guidance ` +
      'compares with',
  )
}

/** @internal */
export function resolveGuidanceChannels(
  wanted: number | 'all' | undefined,
  { channels }: DiTConfig,
): number {
  if (wanted === 'all') return channels
  if (wanted === undefined) return channels === 4 ? 3 : channels
  if (wanted > channels) {
    throw invalidOption('guidanceChannels', `1 to ${channels} or 'all'`, wanted)
  }
  return wanted
}

function resolveSeeds({ seed, seeds }: SampleOptions, n: number): bigint[] {
  if (seeds === undefined) return seedsFrom(seed, n)
  if (seed !== undefined) throw invalidOption('seed', 'nothing beside seeds', seed)
  if (seeds.length !== n) {
    throw new DiTError(
      'ERR_DIT_SHAPE',
      `Expected ${n} seeds, one per image, but got ${seeds.length}`,
    )
  }
  return seeds.map(BigInt)
}

/** seed, seed + 1, …; from a random one when there is none. @internal */
export function seedsFrom(seed: Seed | undefined, n: number): bigint[] {
  const first = BigInt(seed ?? randomSeed())
  return Array.from({ length: n }, (_, i) => BigInt.asUintN(64, first + BigInt(i)))
}

/** From 0 to 2^48 - 1: short enough to be read out. @internal */
export function randomSeed(): number {
  return randomBytes(6).readUIntBE(0, 6)
}

function toSeed(seed: bigint): Seed {
  return seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed
}

/** Events of a call's jobs as events of the call. @internal */
export function relay(
  parts: readonly SamplePart[],
  made: readonly Made[],
  onProgress: (event: ProgressEvent | PreviewEvent) => void,
) {
  const done = parts.map(() => 0)
  return (event: RunningEvent, part: number) => {
    const { begin, end } = parts[part] as SamplePart
    if (event.kind === 'preview') {
      const index = begin + event.image
      const [image] = splitImages(event, made.slice(index, index + 1)) as [RawImage]
      onProgress({ type: 'preview', index, image, step: event.done, steps: event.total })
      return
    }
    if (event.done === done[part]) return // its images wait for others
    done[part] = event.done
    const step = done.reduce((sum, steps) => sum + steps, 0)
    onProgress({ type: 'progress', step, steps: (event.total / (end - begin)) * made.length })
  }
}
